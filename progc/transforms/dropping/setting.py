"""Writes other rates into the drops of a program's train graph, and inserts drop-path into blocks that have none.

A block whose rate was zero at capture has no drop-path in the graph. It needs one when it gets another place in a ramp.
The blocks of a chain are equal except for such noise, so their nodes correspond one to one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from progc.analysis.chains import Chain, chains_of
from progc.analysis.chains.canonical import View
from progc.errors import PassOptionError
from progc.ir.graphs import copy_graph, propagate
from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.transforms.depth.naming import renamed_stack
from progc.transforms.dropping.find import DRAWING, MEMORY, Drop, Kind, Share, find_drops, set_argument
from progc.transforms.dropping.ramp import Ramp, RampStep, ramp, steps

_aten = torch.ops.aten
_STILL = {
    _aten.bernoulli_.float: _aten.fill_.Scalar,
    _aten.bernoulli.p: _aten.full_like.default,
    _aten.add.Tensor: _aten.full_like.default,
    _aten.add_.Tensor: _aten.fill_.Scalar,
    _aten.rand.default: _aten.empty.memory_format,
    _aten.rand_like.default: _aten.empty_like.default,
}
"""What draws, or makes a mask of what was drawn, to what fills with the same number and draws nothing.

Addition is included because 1 plus the largest float below 1 rounds to 2, which `floor` does not change.
"""


@dataclasses.dataclass(frozen=True)
class Dropped:
    """The result of `set_drops`: the program (the same object if nothing changed), counts, and notes."""

    program: Program
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


def set_drops(program: Program, *, path: float | None, dropout: float | None, shape: Ramp) -> Dropped:
    """Returns the program with these largest rates of drop-path and dropout; None leaves a kind unchanged.

    Args:
        shape: `keep`: every rate keeps its proportion to the largest one. `linear`: drop-path rates rise linearly over
            the blocks in execution order, dropout rates keep their proportions. `uniform`: all rates are equal.

    Raises:
        PassOptionError: a rate above 0, and no place in the graph where it could be set.
    """
    graphs = {mode: copy_graph(graph) for mode, graph in program.graphs.items()}
    graph = graphs["train"]
    result = program.replace(graphs=graphs)
    drops = find_drops(graph)
    counts: dict[str, int] = {}
    notes: list[str] = []
    inserted = changed = 0
    wanted: list[tuple[Kind, float | None, str]] = [("path", path, "drop-paths"), ("dropout", dropout, "dropouts")]
    for kind, rate, unit in wanted:
        if rate is None:
            continue
        own = [drop for drop in drops if drop.kind == kind]
        if not own:
            if rate > 0:
                raise PassOptionError(_missing(kind, rate))
            continue
        placed = steps(program, graph, own) if kind == "path" and shape != "keep" else []
        if placed:
            placed, more = _completed(program, graph, placed, rate, shape)
            inserted += len(more)
            notes += [f"drop-path inserted into {label}, which had none" for label in more]
            own = [drop for step in placed for drop in step.drops]
        new = ramp(own, rate, shape if kind == "path" or shape == "uniform" else "keep", placed)
        altered = sum(_write(drop, share, value) for drop, share, value in new)
        changed += altered
        counts[f"{unit} set"] = altered
        if altered:
            values = [value for _, _, value in new]
            low, high = f"{min(values):.4g}", f"{max(values):.4g}"
            notes.append(f"{unit}: {len(new)} at " + (f"rate {low}" if low == high else f"rates {low} to {high}"))
    if not changed and not inserted:
        return Dropped(program, {})
    if inserted:
        counts["blocks given drop-path"] = inserted
    propagate(result, graph, "train")
    return Dropped(result, counts, tuple(notes))


def _completed(
    program: Program, graph: fx.Graph, placed: list[RampStep], rate: float, shape: Ramp
) -> tuple[list[RampStep], list[str]]:
    """The steps; those that lack a drop and need one get the drop of another block of their chain."""
    put: dict[str, str] = {}
    chains = {block.label: chain for chain in chains_of(program) for block in chain.blocks}
    for number, step in enumerate(placed):
        wanted = rate > 0 and (shape == "uniform" or number > 0)
        if not wanted or step.drops or step.like is None:
            continue
        new = insert(program, graph, chains[step.label], step.like, step.label)
        if not new:
            raise PassOptionError(
                f"set-drop: path={rate:g}: {step.label} has no drop-path in the train graph (its rate was 0 at "
                "capture) and differs from the other blocks; capture the model with a rate above 0 there"
            )
        put.update({node.name: step.label for node in new})
    if not put:
        return placed, []
    own = [drop for drop in find_drops(graph) if drop.kind == "path"]
    return steps(program, graph, own, put), list(dict.fromkeys(put.values()))


def _missing(kind: Kind, rate: float) -> str:
    option, word = ("path", "drop-path") if kind == "path" else ("dropout", "dropout")
    return (
        f"set-drop: {option}={rate:g}: the train graph has no {word} (its rate was 0 when the model was captured); "
        "build the model with a rate above 0 and capture it again"
    )


def _write(drop: Drop, share: Share, rate: float) -> bool:
    """Sets the rate of one drop in place; returns whether anything changed."""
    changed = False
    for number in drop.numbers:
        changed |= set_argument(number.node, number.argument, 1 - rate if number.keeps else rate)
    for node in drop.nodes if drop.kind == "path" else ():
        changed |= _draw(node, rate > 0, drop.nodes)
    drop.node.meta[MEMORY] = share
    return changed


def _draw(node: fx.Node, draws: bool, nodes: Sequence[fx.Node]) -> bool:
    """Makes one node of a mask draw, or fill with ones; returns whether it did the other before."""
    if draws:
        if DRAWING not in node.meta:
            return False
        node.target = node.meta.pop(DRAWING)
        return True
    target: Any = node.target
    if DRAWING in node.meta or target not in _STILL or not node.kwargs.keys().isdisjoint(("generator", "alpha")):
        return False
    # Random numbers that are compared, not added to, are still drawn; all of them are below one.
    if op_name(node) in ("rand", "rand_like") and not any(op_name(item) in ("add", "full_like") for item in nodes):
        return False
    node.meta[DRAWING] = target
    node.target = _STILL[target]
    return True


def insert(program: Program, graph: fx.Graph, chain: Chain, source: str, label: str) -> list[fx.Node]:
    """Copies the drop-paths of block `source` into block `label` of the same chain, in place.

    Args:
        graph: the train graph of `program`, with the nodes inserted so far.

    Returns:
        The new nodes. Empty if one could not be placed; the graph is then unchanged.
    """
    blocks = {block.label: block for block in chain.blocks}
    named = {node.name: node for node in graph.nodes}
    view = View(program.replace(graphs={**program.graphs, "train": graph}), "train")
    first, second = ([named[name] for name in blocks[item].nodes["train"] if name in named] for item in (source, label))
    plain = [
        [node for node in nodes if node not in view.hidden and node not in view.alias] for nodes in (first, second)
    ]
    if [op_name(node) for node in plain[0]] != [op_name(node) for node in plain[1]]:
        return []
    twin = dict(zip(*plain, strict=True))
    drops = [drop for drop in find_drops(graph) if drop.kind == "path" and drop.node in set(first)]
    places: list[tuple[Drop, fx.Node]] = []
    for drop in drops:
        branch = drop.branch
        while branch is not None and branch in view.alias:
            branch = view.alias[branch]
        if branch is None or branch not in twin:
            return []
        places.append((drop, _behind_noise(twin[branch], view)))
    return [node for drop, branch in places for node in _copy(graph, drop, branch, {source: label})]


def _behind_noise(node: fx.Node, view: View) -> fx.Node:
    """The last noise operation on a value, such as a dropout."""
    while True:
        after = [user for user in node.users if view.alias.get(user) is node]
        if not after:
            return node
        node = after[0]


def _copy(graph: fx.Graph, drop: Drop, branch: fx.Node, labels: dict[str, str]) -> list[fx.Node]:
    """Copies one drop after `branch`; all readers of the branch read the result. Returns the new nodes."""
    assert drop.branch is not None
    readers = list(branch.users)
    copies: dict[fx.Node, fx.Node] = {drop.branch: branch}
    place = branch
    sizes: list[fx.Node] = []

    def twin(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        assert isinstance(node.meta.get("tensor"), int), f"{node} is not part of the drop"
        if not sizes:  # the number of samples, read from the branch itself
            with graph.inserting_after(branch):
                sizes.append(graph.call_function(_aten.sym_size.int, (branch, 0)))
            sizes[0].meta = {"tensor": node.meta["tensor"], "nn_module_stack": branch.meta.get("nn_module_stack", {})}
        return sizes[0]

    for node in drop.nodes:
        fx.node.map_arg((node.args, node.kwargs), twin)
        place = max([place, *sizes], key=_order(graph).__getitem__)
        with graph.inserting_after(place):
            copies[node] = graph.node_copy(node, twin)
        meta: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in node.meta.items()}
        if "nn_module_stack" in meta:
            meta["nn_module_stack"] = renamed_stack(meta["nn_module_stack"], labels)
        copies[node].meta = meta
        place = copies[node]
    for reader in readers:
        reader.replace_input_with(branch, copies[drop.node])
    return [*sizes, *(copies[node] for node in drop.nodes)]


def _order(graph: fx.Graph) -> dict[fx.Node, int]:
    return {node: index for index, node in enumerate(graph.nodes)}
