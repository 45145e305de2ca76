"""Inserts into a block the drop-path that another block of its chain has.

A block whose rate was zero at capture has no drop-path in the graph. It needs one when it gets another place in a ramp.
The blocks of a chain are equal except for such noise, so their nodes correspond one to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from progc.analysis.chains import Chain
from progc.analysis.chains.canonical import View
from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.transforms.depth.naming import renamed_stack
from progc.transforms.dropping.find import Drop, find_drops

_aten = torch.ops.aten


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
