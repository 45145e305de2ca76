"""Cuts a repeated region into blocks by the numbers in its parameters' names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from progc.analysis.chains.names import numbered_step
from progc.analysis.chains.repeats import Region


@dataclasses.dataclass(frozen=True)
class Cut:
    """Blocks as stretches of the sequence: `spans[b]` holds first and last index + 1, `names[b]` name to pattern."""

    spans: tuple[tuple[int, int], ...]
    names: tuple[Mapping[str, str], ...]
    numbers: tuple[int, ...]


def own_names(node: fx.Node | None) -> list[str]:
    if node is None:
        return []
    names = [str(arg.target) for arg in node.all_input_nodes if arg.op == "get_attr"]
    return [name for name in names if not name.startswith("_constants.")]


def numbered_cut(
    nodes: Sequence[fx.Node | None], labels: Sequence[Any], live: Sequence[int], region: Region
) -> Cut | str:
    """Cuts a region into blocks by the numbers in its parameter names, or says what is wrong with the names."""
    numbers: dict[int, dict[str, tuple[int, str]]] = {}
    repeats = region.length // region.period
    for column in range(region.period):
        rows = [region.start + column + i * region.period for i in range(repeats + 1)]
        rows = [k for k in rows if k < region.stop]
        per_row = [own_names(nodes[k]) for k in rows]
        for names in zip(*per_row, strict=False):
            if len(set(names)) == 1:
                continue
            found = numbered_step(names)
            if found is None:
                one, two = next((a, b) for a, b in itertools.pairwise(names) if a != b)
                return f"`{one}` and `{two}` play the same part but do not differ by one number that increases"
            pattern, start, step = found
            for i, k in enumerate(rows):
                numbers.setdefault(k, {})[names[i]] = (start + i * step, pattern)
    if not numbers:
        return "the repeats have no parameters of their own"
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    previous: int | None = None
    for k in sorted(numbers):
        values = {number for number, _ in numbers[k].values()}
        if len(values) > 1 or (previous is not None and min(values) not in (previous, previous + 1)):
            return "the numbers in the parameter names do not rise by one from block to block"
        previous = values.pop()
        firsts.setdefault(previous, k)
        lasts[previous] = k
    order = sorted(firsts)
    if len(order) < 2:
        return "the repeats have no parameters of their own"
    spans = _spans(labels, live, [(firsts[n], lasts[n]) for n in order], region)
    for one, two in itertools.pairwise(span for span in spans if span is not None):
        if min(live[one[0] + 1 : two[0] + 1]) < live[two[0]]:
            return "the numbers in the names of its parameters do not agree on where a block begins"
    keep = [b for b, span in enumerate(spans) if span is not None]
    return Cut(
        tuple(span for span in spans if span is not None),
        tuple(
            {name: pattern for k in numbers for name, (n, pattern) in numbers[k].items() if n == order[b]} for b in keep
        ),
        tuple(order[b] for b in keep),
    )


def _spans(
    labels: Sequence[Any], live: Sequence[int], anchors: Sequence[tuple[int, int]], region: Region
) -> list[tuple[int, int] | None]:
    """Blocks from the first and last parametrised operation of each; None for an incomplete block at an end."""
    cuts = [
        min(range(last + 1, first + 1), key=lambda c: (live[c], -c))
        for (_, last), (first, _) in itertools.pairwise(anchors)
    ]
    phase = max(1, round(region.period * len(anchors) / region.length))
    turn = min(phase, len(anchors) - 1)
    lead = anchors[turn][0] - cuts[turn - 1]
    begin = anchors[0][0] - lead
    back = len(anchors) - 1 - turn
    tail = cuts[back] - anchors[back][1]
    end = anchors[-1][1] + tail
    spans: list[tuple[int, int] | None] = list(itertools.pairwise([begin, *cuts, end]))
    if begin < 0 or labels[begin : anchors[0][0]] != labels[anchors[turn][0] - lead : anchors[turn][0]]:
        spans[0] = None
    if end > len(labels) or labels[anchors[-1][1] : end] != labels[anchors[back][1] : anchors[back][1] + tail]:
        spans[-1] = None
    return spans
