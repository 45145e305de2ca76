"""Prints explanations: one reason per line, with equal modules (`blocks.{0..3}`) on one line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from progc.growth.explain.reasons import AxisSide, Explanation, Norm, ReasonPlace

_KINDS = {
    "copy": "new units are copies of old ones",
    "free": "new units are new functions of the input, which old ones ignore",
    "random": "new units are drawn at random, and so are the weights that read them",
    "stays": "it can grow",
    "pinned": "it cannot grow",
}


def explanation_text(explanations: Sequence[Explanation]) -> str:
    """Returns the reasons of every axis, with an empty line between axes and no final newline."""
    return "\n\n".join("\n".join(_lines(item)) for item in explanations)


def _lines(item: Explanation) -> Iterator[str]:
    size = f"{item.old} -> {item.new}" if item.new != item.old else f"{item.old}"
    yield f"{item.axis}: {size} ({item.meaning})"
    for line in _reasons(item):
        yield f"  {line}"


def _reasons(item: Explanation) -> Iterator[str]:
    yield f"{item.kind}: {_kind(item)}"
    makes = [side for side in item.producers if not side.along]
    yield from _sides("made by", makes)
    yield from _sides("runs along", [side for side in item.producers if side.along])
    yield from _operations("passes", item.norms)
    yield from _sides("read by", item.consumers)
    yield from _operations("multiplied and summed by", item.contractions)
    yield from _factors(item)
    if item.sizes and item.new != item.old:
        plural = "s" if item.sizes > 1 else ""
        yield f"{item.sizes} size{plural} written in the graph follow{'' if plural else 's'} it"
    for pin in item.pins:
        yield f"pinned by {_place(pin.place)}: {pin.reason}" if pin.place else f"pinned: {pin.reason}"
    if item.kind == "pinned":
        return
    if item.obstacle is not None:
        yield f"not exact: {item.obstacle}" + (f" ({_place(item.obstacle_at)})" if item.obstacle_at else "")
    elif item.kind != "stays":
        yield "exact: no sum over it changes"


def _kind(item: Explanation) -> str:
    text = _KINDS.get(item.kind, "")
    if item.kind == "copy" and item.new % item.old == 0:
        text = f"every unit occurs {_times(item.new // item.old)}, with copies next to each other"
    elif item.kind == "copy":
        few, more = item.new // item.old, item.new % item.old
        text = f"{more} of {item.old} units occur {_times(few + 1)}, the others {_times(few)}"
    return f"{text}, because {item.why}" if item.why and text else text or item.why


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _sides(what: str, sides: Sequence[AxisSide]) -> Iterator[str]:
    for text in _joined((f"{side.tensor} dim {side.dim}", side.how) for side in sides):
        yield f"{what} {text}"


def _operations(what: str, norms: Sequence[Norm]) -> Iterator[str]:
    holds = {True: "; holds", False: "; does not hold", None: ""}
    for text in _joined((_place(norm.place, lines=True), f"{norm.condition}{holds[norm.holds]}") for norm in norms):
        yield f"{what} {text}"


def _factors(item: Explanation) -> Iterator[str]:
    ratio = item.new / item.old
    told = []
    for f in item.factors:
        entries = f" on entries {f.entries}" if f.entries != "all" else ""
        uneven = ", different for each copy" if f.shared else ""
        what = f"{_value(f.factor, ratio)}{entries}{uneven}, because {f.because}"
        told.append((f"factor on {f.tensor} dim {f.dim}", what))
    yield from _joined(told)


def _value(value: float, ratio: float) -> str:
    """A factor as a number, and as an expression of the growth factor where it is one: `0.7071 = 1/sqrt(2)`."""
    named = {f"1/{ratio:g}": 1 / ratio, f"1/sqrt({ratio:g})": ratio**-0.5, f"sqrt({ratio:g})": ratio**0.5}
    word = next((word for word, known in named.items() if math.isclose(known, value, rel_tol=1e-9)), None)
    return f"{value:.4g}" + (f" = {word}" if word is not None and ratio != 1 else "")


def _place(place: ReasonPlace | None, lines: bool = False) -> str:
    if place is None:
        return ""
    where = (
        place.module if lines and place.module else f"{place.node} in {place.module}" if place.module else place.node
    )
    op = f"{place.op} at " if place.op else ""
    return f"{op}{where}" + (f" ({place.line})" if place.line else "")


# -- like modules on one line ------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<=\.)(\d+)(?=[.\s,;:)]|$)")


def _joined(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    """`subject: reason`; lines that differ in one running number only become one line."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for subject, reason in dict.fromkeys(items):
        groups.setdefault((_NUMBER.sub("#", subject), _NUMBER.sub("#", reason)), []).append((subject, reason))
    for group in groups.values():
        line = _merged([_told(subject, reason) for subject, reason in group])
        if line is not None:
            yield line
            continue
        for reason in dict.fromkeys(reason for _, reason in group):
            yield _told(", ".join(subject for subject, other in group if other == reason), reason)


def _told(subject: str, reason: str) -> str:
    return f"{subject}: {reason}" if reason else subject


def _merged(lines: list[str]) -> str | None:
    """Lines that differ in the value of one number, as `blocks.{0..3}.up`; None if they differ elsewhere."""
    columns = list(zip(*(_NUMBER.split(line) for line in lines), strict=True))
    varying = {column for column in columns if len(set(column)) > 1}
    if len(varying) > 1:
        return None
    return "".join(column[0] if column not in varying else _range([int(n) for n in column]) for column in columns)


def _range(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
