"""Cuts a graph into pieces that run one after the other: the blocks of its chains, and what is between them.

Graph order is execution order, so a piece is a range of it. Other operations inside the range of a block stay with the
block, unless others read them. Those are computed before the block, which is allowed for operations that draw no random
numbers and write to nothing. Where that is impossible, neighbours become one piece. Cutting never changes the results
or the order in which random numbers are drawn.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from progc.analysis.chains import chains_of
from progc.ir.program import Mode, Program


@dataclasses.dataclass(frozen=True)
class Piece:
    """A range of a graph.

    Attributes:
        label: label of its block; None for operations between blocks.
        nodes: its call nodes in graph order.
    """

    label: str | None
    nodes: tuple[fx.Node, ...]


def cut(program: Program, mode: Mode) -> list[Piece]:
    """Returns the pieces of a program's graph in execution order; every call node is in exactly one."""
    calls = [node for node in program.graphs[mode].nodes if node.op == "call_function"]
    place = {node: index for index, node in enumerate(calls)}
    by_name = {node.name: node for node in calls}
    spans = []
    for chain in chains_of(program).outermost(mode):
        for block in chain.blocks:
            own = [place[by_name[name]] for name in block.nodes[mode] if name in by_name]
            if own:
                spans.append((min(own), max(own) + 1, block.label))
    spans = _apart(sorted(spans))
    pieces: list[Piece] = []
    done = 0
    for start, stop, label in spans:
        inside, before = _hoisted(calls, place, start, stop)
        between = [*calls[done:start], *before]
        if between:
            pieces.append(Piece(None, tuple(between)))
        pieces.append(Piece(label, tuple(inside)))
        done = stop
    if calls[done:]:
        pieces.append(Piece(None, tuple(calls[done:])))
    return pieces


def _apart(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Ranges that overlap are left to the operations between blocks."""
    return [
        span
        for index, span in enumerate(spans)
        if not any(other[0] < span[1] and span[0] < other[1] for j, other in enumerate(spans) if j != index)
    ]


def _hoisted(
    calls: list[fx.Node], place: dict[fx.Node, int], start: int, stop: int
) -> tuple[list[fx.Node], list[fx.Node]]:
    """The operations of a range, and those of them that are computed before it.

    The latter are pure, need no other value of the range, and are read after it.
    """
    before: list[fx.Node] = []
    chosen: set[fx.Node] = set()
    for node in calls[start:stop]:
        ready = all(place.get(source, -1) < start or source in chosen for source in node.all_input_nodes)
        later = any(place.get(user, stop) >= stop for user in node.users)
        small = isinstance(node.meta.get("tensor"), int)
        if ready and (small or later) and is_pure(node) and not any(_writes_into(user) for user in node.users):
            if small or all(place.get(source, -1) < start for source in node.all_input_nodes if source in place):
                before.append(node)
                chosen.add(node)
    return [node for node in calls[start:stop] if node not in chosen], before


def is_pure(node: fx.Node) -> bool:
    """Returns whether a call draws no random numbers and writes to nothing."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def _writes_into(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
