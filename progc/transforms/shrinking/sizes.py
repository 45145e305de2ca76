"""How wide: from `width`, `heads`, `mlp` and single axes to a smaller size for every axis they are about.

The same proportions as in growth (progc/transforms/width/sizes.py): the width takes everything with it, head dims stay
where the number of heads comes out whole. A normalisation over groups keeps its number of groups where that leaves
every group whole channels, else it loses groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from progc.analysis.axes import AxisTable, axes_of
from progc.errors import PassOptionError, TargetError, did_you_mean
from progc.ir.program import Program
from progc.transforms.width.fit import attention_sizes, beside_heads, group_sizes, inner_heads, rounded
from progc.transforms.width.sizes import FIXED, head_counts, is_made, widths

_NUMBER = re.compile(r"(?P<times>\*)?(?P<number>\d+(?:\.\d*)?|\.\d+)")


def parse_width(option: str, text: str) -> tuple[Fraction, bool]:
    """`192`, `0.5`, `*0.5`: a number, and whether it is a factor (one with a point is).

    Raises:
        PassOptionError: anything else, 0, or a factor above 1.
    """
    match = _NUMBER.fullmatch(text.strip())
    number = Fraction(match["number"]) if match else Fraction(0)
    relative = match is not None and bool(match["times"] or "." in match["number"])
    if match is None or number <= 0 or (relative and number > 1):
        raise PassOptionError(f"shrink: {option}={text} is no size; write a number (192) or a factor up to 1 (*0.5)")
    return number, relative


def parse_axis(text: str) -> tuple[str, int]:
    """`name:size`.

    Raises:
        PassOptionError: anything else, or size 0.
    """
    name, colon, size = text.rpartition(":")
    if not colon or not size.isdigit() or not int(size):
        raise PassOptionError(f"shrink: axes takes name:size with a size from 1 on, not `{text}`")
    return name, int(size)


def smaller_sizes(
    program: Program, width: str | None, heads: int | None, mlp: str | None, axes: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """New size of every axis that shrinks, by name, and a note about each that was rounded.

    Raises:
        TargetError: a size that is larger than the present one, not whole, or of an axis that cannot change.
    """
    table = axes_of(program)
    named = dict(parse_axis(text) for text in axes)
    text = ",".join(f"{key}={value}" for key, value in (("width", width), ("heads", heads), ("mlp", mlp)) if value)
    found: dict[str, int] = {}
    notes: list[str] = []
    if text:
        if width is not None:
            _check_stream(table, width)
        try:
            found, notes = _fitted(program, width, heads, mlp)
        except TargetError as error:
            raise TargetError(f"shrink: {text}: {error}{_nearest(program, width, heads, mlp)}") from error
    for name, size in named.items():
        _check_axis(table, name, size)
        found[name] = size
    return {name: size for name, size in found.items() if size != table[name].size}, notes


def _check_stream(table: AxisTable, width: str) -> None:
    if widths(table):
        return
    pinned = next((axis for axis in table.axes if axis.meaning == "residual width"), None)
    why = (
        f"the residual width {pinned.name} (size {pinned.size}) cannot change: {pinned.reason}; name other sizes (mlp, "
        "heads) or single axes"
        if pinned is not None
        else "this network has no axis that can change; progc inspect --axes says why"
    )
    raise TargetError(f"shrink: width={width}: {why}")


def _fitted(
    program: Program, width: str | None, heads: int | None, mlp: str | None
) -> tuple[dict[str, int], list[str]]:
    table = axes_of(program)
    factor, wanted_width = _factor(table, width)
    new: dict[str, Fraction] = {}
    inner = inner_heads(table)
    if factor != 1:
        for axis in table.growable:
            skipped = axis.meaning in ("heads", "head dim", *FIXED) or axis.atom in inner
            if not skipped and is_made(program, axis):
                new[axis.name] = axis.size * factor
        groups = group_sizes(table, factor)
        if any(new.get(name, Fraction(1)).denominator != 1 for name in groups):
            new.update(groups)
    share = _heads(table, heads, factor)
    if factor != 1:
        new.update(attention_sizes(table, factor, share, free=heads is None))
    else:  # fewer heads at one width: a head stays what it is
        new.update({a.name: a.size * share for a in table.growable if a.meaning == "heads" and a.atom not in inner})
    strict = {axis.name for together in beside_heads(table) for axis in together}
    if mlp is not None:
        number, relative = parse_width("mlp", mlp)
        chosen = [axis for axis in table.growable if axis.meaning == "hidden width"]
        if not chosen:
            raise TargetError("this network has no hidden width axis that can change")
        new.update({axis.name: axis.size * number if relative else number for axis in chosen})
        strict |= {axis.name for axis in chosen}
    whole, notes = rounded(table, new, strict)
    found = _checked(table, whole)
    if wanted_width is not None and widths(table, found)[0] != wanted_width:
        raise TargetError(f"the residual width would get {widths(table, found)[0]}: it is made of whole parts")
    return found, notes


def _factor(table: AxisTable, width: str | None) -> tuple[Fraction, int | None]:
    """Factor of the width, and the width itself where it was given as a size."""
    if width is None:
        return Fraction(1), None
    number, relative = parse_width("width", width)
    if relative:
        return number, None
    stream = widths(table)[0]
    if number > stream:
        raise TargetError(f"the residual width is {stream}; use grow-width{{width={number}}}")
    return number / stream, int(number)


def _heads(table: AxisTable, heads: int | None, width: Fraction) -> Fraction:
    if heads is None:
        return width
    present = head_counts(table)
    if not present:
        raise TargetError("this network has no head axis that can change")
    if not 1 <= heads <= present[0]:
        raise TargetError(f"it has {present[0]} heads; give 1 to {present[0]}, for more use grow-width")
    return Fraction(heads, present[0])


def _checked(table: AxisTable, new: Mapping[str, Fraction]) -> dict[str, int]:
    for name, value in new.items():
        axis = table[name]
        what = f"axis {name} ({axis.meaning}) has {axis.size} units and would get {float(value):g}"
        if value.denominator != 1 or value < 1:
            raise TargetError(f"{what}; sizes are whole numbers from 1 on")
        if value > axis.size:
            raise TargetError(f"{what}; shrink only takes units away, use grow-width for this")
    return {name: int(value) for name, value in new.items()}


def _check_axis(table: AxisTable, name: str, size: int) -> None:
    names = [axis.name for axis in table.axes]
    if name not in names:
        raise TargetError(f"no axis is called `{name}`{did_you_mean(name, names)}; progc inspect --axes lists them")
    axis = table[name]
    if size > axis.size:
        raise TargetError(
            f"shrink: axis {name} has {axis.size} units; {size} is larger, use grow-width{{axes={name}:{size}}}"
        )
    if not axis.growable and size != axis.size:
        raise TargetError(f"shrink: axis {name} (size {axis.size}) cannot shrink to {size}: {axis.reason}")


def _nearest(program: Program, width: str | None, heads: int | None, mlp: str | None) -> str:
    """The nearest widths that fit everywhere, in words."""
    streams = widths(axes_of(program))
    if width is None or not streams:
        return ""
    number, relative = parse_width("width", width)
    goal = streams[0] * number if relative else number

    def fits(value: int) -> bool:
        try:
            _fitted(program, str(value), heads, mlp)
        except TargetError:
            return False
        return True

    below = next((value for value in range(min(int(goal), streams[0]), 0, -1) if fits(value)), None)
    above = next((value for value in range(int(goal) + 1, streams[0]) if fits(value)), None)
    found = [str(value) for value in (below, above) if value is not None]
    return f"; nearest widths: {', '.join(found)}" if found else ""
