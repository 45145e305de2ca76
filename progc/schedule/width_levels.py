"""Finds the levels of width: widths of the residual stream that `shrink` can make and from which growth is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from progc.analysis.axes import axes_of
from progc.errors import InputError, ProgcError, TargetError
from progc.models.sizes import Size, Sizes
from progc.schedule.level_texts import Levels, parse
from progc.schedule.space import factors
from progc.transforms.width.frozen import held_axes
from progc.transforms.width.sizes import axis_sizes, head_counts, widths

if TYPE_CHECKING:
    from progc.ir.program import Program

Grows = Callable[[int, int], None]
"""Raises a ProgcError where the network of one width cannot grow to that of another exactly."""
_TRIES = 8
"""Number of sizes that are tried on either side of a level."""


def asked(program: Program, text: Levels, grows: Grows, notes: list[str]) -> list[int]:
    """Returns the widths that a text gives, ascending; factors are rounded to whole heads, with a note.

    Raises:
        InputError: a width that the network cannot have or cannot grow from (the message gives the nearest ones), or a
            last level that is not the full width.
    """
    wish = parse("widths", text, example="192,288,384")[0]
    full = stream(program)
    wanted = [value * full if wish.relative else value for value in wish.values]
    if wanted[-1] != full:
        raise InputError(
            f"widths `{wish.text}`: expected the full width, {full}, as the last level, got {float(wanted[-1]):g}; add "
            f"{full}"
        )
    if not wish.relative and (odd := [value for value in wanted if value.denominator != 1]):
        raise InputError(
            f"widths `{wish.text}`: expected an integer number of units, got {float(odd[0]):g}; list sizes, or factors"
        )
    found = [full]
    for value in reversed(wanted[:-1]):
        if wish.relative:
            size, reason = _rounded(program, value, found[0], grows)
            if reason is not None:
                notes.append(f"widths: {float(value):g} is changed to {size}: {reason}")
        else:
            size = _exact(program, int(value), found[0], grows, wish.text)
        if size != found[0]:
            found.insert(0, size)
    return found if len(found) > 1 else []


def between(program: Program, smallest: int, levels: int, grows: Grows) -> list[int]:
    """Returns evenly spaced widths from the width of a start to the full one; only those that grow exactly."""
    full = stream(program)
    found = [full]
    for value in reversed(factors(Fraction(smallest), Fraction(full), levels)[1:-1]):
        size, _ = _rounded(program, value, found[0], grows)
        if smallest < size < found[0]:
            found.insert(0, size)
    return [smallest, *found]


def stream(program: Program) -> int:
    """Returns the width of the residual stream of the full network; the narrowest one if it has several.

    Raises:
        InputError: no axis can change.
    """
    streams = widths(axes_of(program), held=held_axes(program))
    if not streams:
        raise InputError("widths: no axis of this network can change (progc inspect --axes says why); remove widths")
    return streams[0]


def _rounded(program: Program, value: Fraction, above: int, grows: Grows) -> tuple[int, ProgcError | None]:
    """The nearest width of whole heads that grows to `above` exactly, or `above`; and why a nearer one does not."""
    full = stream(program)
    heads = head_counts(axes_of(program), held_axes(program))
    unit = full // heads[0] if heads and full % heads[0] == 0 else 8 if full % 8 == 0 and full >= 32 else 1
    sizes = [*range(unit, above, unit), above]
    first: ProgcError | None = None
    for size in sorted(sizes, key=lambda size: (abs(size - value), -size))[:_TRIES]:
        reason = _reason(program, size, above, grows)
        if size == above or reason is None:
            return size, first
        first = first or reason
    return above, first


def _exact(program: Program, size: int, above: int, grows: Grows, text: str) -> int:
    reason = _reason(program, size, above, grows)
    if reason is None:
        return size
    if isinstance(reason, TargetError) and "nearest" in str(reason):
        raise InputError(f"widths `{text}`: {str(reason).removeprefix('shrink: ')}") from reason
    near = [
        _first(program, sides, above, grows)
        for sides in (
            range(size - 1, max(size - 1 - 8 * _TRIES, 0), -1),
            range(size + 1, min(size + 8 * _TRIES, above)),
        )
    ]
    words = " and ".join(str(one) for one in near if one is not None)
    hint = f"the nearest widths that do are {words}" if words else "no width near it does; remove it"
    raise InputError(f"widths `{text}`: {size} does not grow to {above} exactly: {reason}; {hint}") from reason


def _first(program: Program, sizes: Sequence[int], above: int, grows: Grows) -> int | None:
    fits = [size for size in sizes if _made(program, size) is None]
    return next((size for size in fits[: _TRIES // 2] if _reason(program, size, above, grows) is None), None)


def _reason(program: Program, size: int, above: int, grows: Grows) -> ProgcError | None:
    reason = _made(program, size)
    if reason is None and size != above:
        try:
            grows(size, above)
        except ProgcError as error:
            return error
    return reason


def _made(program: Program, size: int) -> ProgcError | None:
    try:
        axis_sizes(
            program, Sizes({"width": Size(size, relative=False)}, f"width={size}"), shrink=True, keep_frozen=True
        )
    except TargetError as error:
        return error
    return None
