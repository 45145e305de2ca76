"""Computes the rate of each drop: rates in their present proportions, or a ramp over the blocks in execution order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import fx

from progc.analysis.chains import Chain, chains_of
from progc.errors import PassOptionError
from progc.ir.notation import module_path
from progc.ir.program import Program
from progc.transforms.dropping.find import MEMORY, Drop, Share, find_drops
from progc.transforms.freezing.blocks import Blocks

Ramp = Literal["keep", "linear", "uniform"]


@dataclasses.dataclass(frozen=True)
class RampStep:
    """One step of a linear ramp: a block.

    Attributes:
        label: the block's name.
        drops: its drops, which share one rate.
        like: a block of the same chain that has drops, if this one has none and needs them.
    """

    label: str
    drops: tuple[Drop, ...]
    like: str | None = None


def steps(
    program: Program, graph: fx.Graph, drops: Sequence[Drop], put: Mapping[str, str] | None = None
) -> list[RampStep]:
    """Returns the blocks of a ramp in execution order, up to the last one that drops.

    These are the blocks of chains with their numbered neighbours, whether they drop or not (at rate 0 the graph
    contains no drop), and other modules that drop, each as one step. Without blocks, every drop is a step.

    Args:
        graph: the train graph of the drops: that of `program`, with the nodes inserted so far.
        put: inserted nodes to the label of their block.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    counted = _chains(program, {node.name for drop in drops for node in drop.nodes})
    chains = {block.label: chain for chain in counted for block in chain.blocks}
    units = {unit.label: unit.parameters for unit in Blocks(program, counted).units}
    inside = dict(put or {})
    for chain in counted:
        for block in chain.blocks:
            inside.update(dict.fromkeys(block.nodes["train"], block.label))
    starts: dict[str, int] = {}
    for label, names in units.items():
        sources = (node for node in graph.nodes if node.op == "get_attr" and node.target in names)
        starts[label] = min((position[user] for node in sources for user in node.users), default=len(position))
    owned: dict[str, list[Drop]] = {label: [] for label in starts}
    for drop in drops:
        found = next((inside[node.name] for node in drop.nodes if node.name in inside), None)
        label = _module(drop, starts) if found is None else found
        starts.setdefault(label, position[drop.node])
        owned.setdefault(label, []).append(drop)
    order = sorted(starts, key=lambda label: starts[label])
    last = max((index for index, label in enumerate(order) if owned[label]), default=-1)
    return [RampStep(label, tuple(owned[label]), _like(label, owned, chains)) for label in order[: last + 1]]


def _chains(program: Program, dropping: set[str]) -> list[Chain]:
    """Chains that share no node: the innermost ones that drop, then the largest of the others.

    Where stages of blocks form a chain themselves, the blocks count, not the stages.
    """
    sized = [({name for block in chain.blocks for name in block.nodes["train"]}, chain) for chain in chains_of(program)]
    order = sorted(
        sized, key=lambda item: (not item[0] & dropping, len(item[0]) if item[0] & dropping else -len(item[0]))
    )
    kept: list[tuple[set[str], Chain]] = []
    for nodes, chain in order:
        if not any(nodes & covered for covered, _ in kept):
            kept.append((nodes, chain))
    return [chain for _, chain in kept]


def _module(drop: Drop, labels: dict[str, int]) -> str:
    """The block whose module a drop is in, else the module around it, else the node itself."""
    path = module_path(drop.node)
    inner = [label for label in labels if path == label or path.startswith(f"{label}.")]
    return max(inner, key=len) if inner else path.rpartition(".")[0] or drop.node.name


def _like(label: str, owned: dict[str, list[Drop]], chains: dict[str, Chain]) -> str | None:
    """A block of the same chain, at the same position in its period, that drops."""
    chain = chains.get(label)
    if owned[label] or chain is None:
        return None
    labels = [block.label for block in chain.blocks]
    place = labels.index(label)
    same = [other for k, other in enumerate(labels) if owned.get(other) and (k - place) % chain.period == 0]
    return min(same, key=lambda other: abs(labels.index(other) - place)) if same else None


def shares(drops: Sequence[Drop]) -> list[Share]:
    """Returns the proportion of each drop to the largest rate: as last set, else as it is now."""
    largest = max((drop.rate for drop in drops if MEMORY not in drop.node.meta), default=0.0)
    single = all(_is_single(drop.rate) for drop in drops if MEMORY not in drop.node.meta)
    return [
        drop.node.meta.get(MEMORY) or Share(_rounded(drop.rate, single) / largest if largest else 0.0, single)
        for drop in drops
    ]


def ramp(
    drops: Sequence[Drop], rate: float, shape: Ramp, placed: Sequence[RampStep]
) -> list[tuple[Drop, Share, float]]:
    """Returns the new share and rate of every drop.

    Raises:
        PassOptionError: proportions are to be kept, but all rates were zero at capture.
    """
    known = shares(drops)
    single = all(share.single for share in known)
    if shape == "uniform":
        return [(drop, Share(1.0, single), rate) for drop in drops]
    if shape == "linear":
        count = len(placed)
        rates = (
            torch.linspace(0, rate, count).tolist() if single else [rate * k / max(count - 1, 1) for k in range(count)]
        )
        parts = [k / max(count - 1, 1) for k in range(count)]
        return [(drop, Share(parts[k], single), rates[k]) for k, step in enumerate(placed) for drop in step.drops]
    if rate > 0 and not any(share.of_largest for share in known):
        raise PassOptionError(
            f"set-drop: {drops[0].kind}={rate:g}: all {len(drops)} rates were 0 at capture, so there are "
            "no proportions to keep; set ramp=uniform, or capture the model with a rate above 0"
        )
    largest = max(share.of_largest for share in known) or 1.0
    return [
        (drop, share, _rounded(share.of_largest / largest * rate, single))
        for drop, share in zip(drops, known, strict=True)
    ]


def is_linear(program: Program) -> bool:
    """Returns whether drop-path rates rise linearly over the blocks, as `ramp` makes them."""
    graph = program.graphs["train"]
    drops = [drop for drop in find_drops(graph) if drop.kind == "path"]
    parts = {drop.node: share.of_largest for drop, share in zip(drops, shares(drops), strict=True)}
    if len(set(parts.values())) < 2:
        return False
    placed = steps(program, graph, drops)
    return all(
        abs(parts[drop.node] - k / max(len(placed) - 1, 1)) < 1e-3
        for k, step in enumerate(placed)
        for drop in step.drops
    )


def _is_single(rate: float) -> bool:
    return abs(_rounded(rate, True) - rate) < 1e-15


def _rounded(rate: float, single: bool) -> float:
    return float(torch.tensor(rate, dtype=torch.float32)) if single else rate
