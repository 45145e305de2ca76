"""Runs of isomorphic blocks: how blocks are connected, and which sequences of blocks form a chain.

In a run, blocks that are `period` apart have equal canonical forms. Each block reads the results of the block before it
in the same way, and no other result of a block is read outside. The shapes at all boundaries are then equal. Only a run
of a single period must be checked by comparing its entry with its exit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import fx

from progc.analysis.chains.canonical import Form
from progc.errors import first_of
from progc.ir.program import MODES, Mode

MAX_PERIOD = 8


@dataclasses.dataclass(frozen=True)
class RunPiece:
    """A candidate block. `kind` is its class name, or empty if blocks were found by structure."""

    label: str
    index: int
    kind: str
    tensors: tuple[str, ...]
    patterns: tuple[str, ...]
    forms: Mapping[Mode, Form]

    def isomorphic(self, other: RunPiece) -> bool:
        """Returns whether both graphs of the two blocks are equal except for soft literals and noise."""
        return all(self.forms[mode].key == other.forms[mode].key for mode in MODES)


@dataclasses.dataclass(frozen=True)
class Link:
    """How block b reads block a in one graph: (slot of b, place in a). Other slots of b are shared values."""

    wires: tuple[tuple[int, int], ...]

    @property
    def carried(self) -> frozenset[int]:
        """The slots of b that read a."""
        return frozenset(slot for slot, _ in self.wires)


Links = Mapping[Mode, Link]


@dataclasses.dataclass(frozen=True)
class Run:
    """The pieces `start .. stop - 1`; their number is a multiple of `period`.

    Attributes:
        heads: per mode and block, the slots through which values of the block before enter.
        tails: per mode, the places in the last block whose values leave, in the same order.
    """

    start: int
    stop: int
    period: int
    heads: Mapping[Mode, tuple[tuple[int, ...], ...]]
    tails: Mapping[Mode, tuple[int, ...]]


def owner(node: fx.Node) -> str:
    """Returns the module that a node belongs to, for messages."""
    if node.op == "output":
        return "the output of the model"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return f"`{path}`" if path and not path.startswith("_") else f"`{node.name}` in the forward of the model"


def link(before: RunPiece, after: RunPiece) -> Links | str:
    """Returns how `after` reads `before` in both graphs, or the reason why it is not the next block."""
    found: dict[Mode, Link] = {}
    for mode in MODES:
        one = _link(before, after, mode)
        if isinstance(one, str):
            return one
        found[mode] = one
    if len({len(one.wires) for one in found.values()}) > 1:
        return f"train and eval graphs pass different values from {before.label} to {after.label}"
    return found


def _link(before: RunPiece, after: RunPiece, mode: Mode) -> Link | str:
    exits = dict(before.forms[mode].exits)
    inside = set(after.forms[mode].nodes)
    wires: list[tuple[int, int]] = []
    for slot, node in enumerate(after.forms[mode].slots):
        if node in exits:
            place = exits[node]
            if place is None or place < 0:
                return f"{after.label} reads `{node.name}` from {before.label}, which does not compute it as a result"
            wires.append((slot, place))
    own = set(before.forms[mode].nodes)
    others = [owner(user) for node in exits for user in node.users if user not in inside and user not in own]
    if others:
        plain = list(dict.fromkeys(others))
        readers = [one for one in plain if not any(one.startswith(other[:-1] + ".") for other in plain)]
        text = first_of(readers, 3)
        if not wires:
            return f"the exit of {before.label} is read by {text}, not by {after.label}"
        return f"the exit of {before.label} is also read by {text}, not only by {after.label}"
    if not wires:
        return f"{after.label} does not read {before.label}"
    return Link(tuple(wires))


def find_runs(pieces: Sequence[RunPiece], links: Sequence[Links | str]) -> list[Run]:
    """Finds maximal runs of at least two periods, greedily from the left.

    Args:
        pieces: candidate blocks in order.
        links: `links[j]` is the link between piece j and piece j + 1, or the reason why there is none.
    """
    runs: list[Run] = []
    start = 0
    while start < len(pieces):
        best: Run | None = None
        for period in range(1, MAX_PERIOD + 1):
            stop = _extent(pieces, links, start, period)
            if stop - start >= 2 * period and (best is None or stop > best.stop):
                run = _closed(pieces, links, start, stop, period)
                if run is not None and (best is None or run.stop > best.stop):
                    best = run
        if best is None:
            start += 1
        else:
            runs.append(best)
            start = best.stop
    return runs


def turned(pieces: Sequence[RunPiece], links: Sequence[Links | str], run: Run) -> Run:
    """Returns a run of single layers, shifted so that its periods end with a layer without parameters (an activation).

    From the left, `conv relu conv relu` after a wider convolution is found as `relu conv, relu conv`. Only a copy that
    ends with its activation can pass on the output of an activation.
    """
    for shift in range(run.period):
        start, stop = run.start + shift, run.stop + shift
        if stop > len(pieces) or _extent(pieces, links, start, run.period) < stop:
            break
        if not pieces[stop - 1].tensors:
            return _closed(pieces, links, start, stop, run.period) or run
    return run


def _extent(pieces: Sequence[RunPiece], links: Sequence[Links | str], start: int, period: int) -> int:
    """Returns the end of the longest run of whole periods from `start`."""
    stop = start + 1
    while stop < len(pieces):
        step = links[stop - 1]
        if isinstance(step, str):
            break
        back = stop - period
        if back >= start:
            if not pieces[back].isomorphic(pieces[stop]):
                break
            if not all(_same_shared(pieces[back], pieces[stop], step[mode], mode) for mode in MODES):
                break
            if back > start:
                earlier = links[back - 1]
                assert not isinstance(earlier, str)  # checked in an earlier iteration
                if earlier != step:
                    break
        stop += 1
    return start + (stop - start) // period * period


def _same_shared(one: RunPiece, two: RunPiece, step: Link, mode: Mode) -> bool:
    slots = zip(one.forms[mode].slots, two.forms[mode].slots, strict=True)
    return all(a is b for k, (a, b) in enumerate(slots) if k not in step.carried)


def _closed(pieces: Sequence[RunPiece], links: Sequence[Links | str], start: int, stop: int, period: int) -> Run | None:
    """Returns the run with its boundaries, shortened while the last block has an exit that no next block reads."""
    turn = links[start + period - 1]
    assert not isinstance(turn, str)
    while stop - start >= 2 * period:
        tails = {mode: tuple(place for _, place in turn[mode].wires) for mode in MODES}
        last = pieces[stop - 1]
        if all(place in tails[mode] for mode in MODES for _, place in last.forms[mode].exits):
            break
        stop -= period
    else:
        return None
    heads: dict[Mode, tuple[tuple[int, ...], ...]] = {}
    for mode in MODES:
        rows = [tuple(slot for slot, _ in turn[mode].wires)]
        for j in range(start, stop - 1):
            step = links[j]
            assert not isinstance(step, str)
            rows.append(tuple(slot for slot, _ in step[mode].wires))
        if len({len(row) for row in rows}) > 1:
            return None
        heads[mode] = tuple(rows)
    return Run(start, stop, period, heads, tails)
