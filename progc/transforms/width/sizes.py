"""Width targets: finds a size for every axis from sizes as users write them (`width=768,heads=12`).

`width` is the size of the residual stream, of the narrowest one where stages differ. It scales everything in
proportion: MLP hidden sizes, conv channels, heads. Head dims, groups and channel multipliers keep their sizes, as they
do between the published sizes of a family; a head dim changes where width and heads together require it. Sizes that are
not integers are fitted (`progc/transforms/width/fit.py`).

Growing and shrinking use the same proportions. They differ in three points. Growth gives a fractional factor to the
groups of a GroupNorm, because whole copied groups are exact; shrinking keeps the number of groups where every group
keeps an integer number of channels. With `heads` alone, growth keeps the product of heads and head dim, and shrinking
keeps the head dim. Growth only adds units, and shrinking only removes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

from progc.analysis.axes import Axis, AxisTable, axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Dim
from progc.analysis.chains import chains_of
from progc.errors import PassOptionError, TargetError, did_you_mean
from progc.ir.program import Program
from progc.models.sizes import KEYS, Size, Sizes
from progc.transforms.width.fit import attention_sizes, beside_heads, group_sizes, inner_heads, rounded
from progc.transforms.width.frozen import held_axes

FIXED = ("norm groups", "conv groups", "channel multiplier")
_NUMBER = re.compile(r"(?P<times>\*)?(?P<number>\d+(?:\.\d*)?|\.\d+)")


class _UnfitError(TargetError):
    """A width or a number of heads that the network cannot have, while others may fit."""


def axis_sizes(program: Program, sizes: Sizes, *, shrink: bool = False, keep_frozen: bool = False) -> dict[str, int]:
    """Returns the new size of every axis that `sizes` changes; see `fitted_sizes`."""
    return fitted_sizes(program, sizes, shrink=shrink, keep_frozen=keep_frozen)[0]


def fitted_sizes(
    program: Program, sizes: Sizes, *, shrink: bool = False, keep_frozen: bool = False
) -> tuple[dict[str, int], list[str]]:
    """Returns the new size of every axis that `sizes` changes, and a note about each one that was rounded.

    Args:
        program: the network.
        sizes: wanted sizes by key (width, heads, mlp, ...) or name of an axis.
        shrink: the sizes may only be smaller than the present ones; otherwise they may only be larger.
        keep_frozen: axes that did not train when the network was captured change only where they are named
            (`progc.transforms.width.frozen`).

    Raises:
        TargetError: an unknown key, or a size that is not an integer, on the wrong side of the present one, or of
            something that the network does not have. The message names the nearest sizes that fit.
    """
    if not sizes.entries:
        return {}, []
    _check_keys(program, sizes)
    text = ("shrink: " if shrink else "") + (sizes.text or str(sizes))
    try:
        return _fit(program, sizes, shrink, keep_frozen)
    except _UnfitError as error:
        raise TargetError(f"{text}: {error}{_nearest(program, sizes, shrink, keep_frozen)}") from error
    except TargetError as error:
        raise TargetError(f"{text}: {error}") from error


def shrink_sizes(width: str | None, heads: int | None, mlp: str | None) -> Sizes:
    """Reads the options of `shrink`: `192`, `0.5`, `*0.5`; a number with a point is a factor.

    Raises:
        PassOptionError: something else, 0, or a factor above 1.
    """
    given = {"width": width, "heads": heads, "mlp": mlp}
    entries: dict[str, Size] = {}
    for key, text in given.items():
        if text is None:
            continue
        if isinstance(text, int):
            entries[key] = Size(text, relative=False)
            continue
        match = _NUMBER.fullmatch(text.strip())
        number = float(match["number"]) if match else 0.0
        relative = match is not None and bool(match["times"] or "." in match["number"])
        if number <= 0 or (relative and number > 1):
            raise PassOptionError(f"shrink: {key}={text}: expected a size (192) or a factor up to 1 (*0.5)")
        entries[key] = Size(number if relative else int(number), relative)
    return Sizes(entries, ",".join(f"{key}={text}" for key, text in given.items() if text is not None))


def parse_axis(text: str, user: str) -> tuple[str, int]:
    """Reads `name:size`.

    Raises:
        PassOptionError: something else, or size 0. The message starts with `user`, the name of a pass.
    """
    name, colon, size = text.rpartition(":")
    if not colon or not size.isdigit() or not int(size):
        raise PassOptionError(f"{user}: axes={text}: expected name:size with an integer size of at least 1")
    return name, int(size)


def named_sizes(table: AxisTable, texts: Iterable[str], *, shrink: bool = False) -> dict[str, int]:
    """Returns the sizes of single axes, given as `name:size`.

    Raises:
        PassOptionError: a text that is not `name:size`.
        TargetError: an axis that does not exist; with `shrink`, one that cannot have that smaller size.
    """
    user = "shrink" if shrink else "grow-width"
    names = [axis.name for axis in table.axes]
    found: dict[str, int] = {}
    for name, size in (parse_axis(text, user) for text in texts):
        if name not in names:
            raise TargetError(
                f"{user}: no axis is called `{name}`{did_you_mean(name, names)}; progc inspect --axes lists them"
            )
        axis = table[name]
        if shrink and size > axis.size:
            raise TargetError(
                f"shrink: axis {name} has {axis.size} units; {size} is larger, use grow-width{{axes={name}:{size}}}"
            )
        if shrink and not axis.growable and size != axis.size:
            raise TargetError(f"shrink: axis {name} (size {axis.size}) cannot shrink to {size}: {axis.reason}")
        found[name] = size
    return found


def _fit(program: Program, sizes: Sizes, shrink: bool, keep_frozen: bool) -> tuple[dict[str, int], list[str]]:
    table = axes_of(program)
    held = held_axes(program) if keep_frozen else frozenset()
    whole, notes = rounded(table, _wanted(program, sizes, shrink, held), _strict(table, sizes))
    found = _checked(table, whole, shrink)
    width = sizes.entries.get("width")
    if width is not None and not width.relative and (got := widths(table, found, held)[0]) != width.value:
        raise _UnfitError(f"the residual width would get {got}: it is a product of whole parts")
    return found, notes


def _strict(table: AxisTable, sizes: Sizes) -> set[str]:
    """Axes that may not be rounded: those that the user names, and those that heads and width decide together."""
    named = {key for key in sizes.entries if key not in KEYS}
    if sizes.entries.keys() & {"mlp", "mlp_ratio"}:
        named |= {axis.name for axis in table.growable if axis.meaning == "hidden width"}
    if "head_dim" in sizes.entries:
        named |= {axis.name for axis in table.growable if axis.meaning == "head dim"}
    return named | {axis.name for together in beside_heads(table) for axis in together}


def _wanted(program: Program, sizes: Sizes, shrink: bool, held: frozenset[str]) -> dict[str, Fraction]:
    """Size of every axis that `sizes` is about, integer or not; axes in `held` only where they are named."""
    table, entries = axes_of(program), sizes.entries
    factor = _width_factor(table, entries.get("width"), shrink, held)
    heads = _heads_factor(table, entries.get("heads"), factor, shrink, held)
    inner = inner_heads(table)
    new: dict[str, Fraction] = {}
    for axis in table.growable:
        if axis.meaning not in ("heads", "head dim", *FIXED) and axis.atom not in inner and is_made(program, axis):
            new[axis.name] = axis.size * factor
    groups = group_sizes(table, factor)
    if any(new.get(name, Fraction(1)).denominator != 1 for name in groups) if shrink else factor.denominator != 1:
        new.update(groups)
    attention = attention_sizes(table, factor, heads, free="heads" not in entries)
    if shrink and factor == 1:  # a head keeps its size where only their number shrinks
        attention = {name: size for name, size in attention.items() if table[name].meaning == "heads"}
    new.update(attention)
    for key in ("head_dim", "mlp", "mlp_ratio"):
        if key in entries:
            meaning = "head dim" if key == "head_dim" else "hidden width"
            chosen = [axis for axis in table.growable if axis.meaning == meaning]
            if not chosen:
                raise TargetError(f"this network has no {meaning} axis that can {_verb(shrink)}")
            base = widths(table, held=held)[0] * factor if key == "mlp_ratio" else None
            new.update({a.name: _sized(a.size, entries[key]) if base is None else base * _number(entries[key])
                        for a in chosen})  # fmt: skip
    new = {name: size for name, size in new.items() if name not in held}
    for key, size in entries.items():
        if key not in KEYS and any(axis.name == key for axis in table.axes):
            new[key] = _sized(table[key].size, size)
    return new


def _check_keys(program: Program, sizes: Sizes) -> None:
    names = [axis.name for axis in axes_of(program).axes]
    chains = [chain.name for chain in chains_of(program)]
    for key in sizes.entries:
        if key not in KEYS and key not in names and key not in chains:
            hint = did_you_mean(key, [*KEYS, *names, *chains])
            raise TargetError(f"`{key}` is not a size, axis or chain of this network{hint}; progc inspect lists them")


def widths(table: AxisTable, new: Mapping[str, int] | None = None, held: frozenset[str] = frozenset()) -> list[int]:
    """Sizes of the residual streams that can grow, narrowest first; of all growable dims if there is no residual.

    Args:
        new: sizes by axis name that replace the present ones.
        held: names of axes that do not count.

    A stream may be a product of axes (a GroupNorm cuts channels into groups x inside); its size is that of the product.
    """
    sizes = {table[name].atom: size for name, size in (new or {}).items()}
    found: set[int] = set()
    for event in table.events:
        if event.kind == "residual":
            found.update(D.resized(part, sizes) for part in _products(event.dim) if _is_stream(table, part, held))
    if not any(axis.meaning == "residual width" for axis in table.axes):
        for dims in table.tensor_dims.values():
            found.update(
                D.resized(part, sizes) for dim in dims for part in _products(dim) if _can_grow(table, part, held)
            )
    return sorted(found)


def _products(dim: Dim) -> list[Dim]:
    """The dim itself, or the parts that it is a concatenation of."""
    dim = D.resolve(dim)
    if len(dim) == 1 and dim[0].segments is not None:
        return [part for segment in dim[0].segments for part in _products(segment)]
    return [dim]


def _is_stream(table: AxisTable, dim: Dim, held: frozenset[str]) -> bool:
    """True if a residual width that can grow is part of the dim: rotated queries are added too, and are none."""
    axes = [table.axis_of(atom) for atom in D.leaves(dim)]
    return any(
        axis is not None and axis.growable and axis.meaning == "residual width" and axis.name not in held
        for axis in axes
    )


def _can_grow(table: AxisTable, dim: Dim, held: frozenset[str]) -> bool:
    axes = [table.axis_of(atom) for atom in D.leaves(dim)]
    return any(axis is not None and axis.growable and axis.name not in held for axis in axes)


def _verb(shrink: bool) -> str:
    return "shrink" if shrink else "grow"


def _number(size: Size) -> Fraction:
    return Fraction(size.value).limit_denominator(10**6)


def _sized(present: int, size: Size) -> Fraction:
    return present * _number(size) if size.relative else _number(size)


def _check_side(what: str, present: int, size: Size, shrink: bool) -> None:
    """Raises if an absolute size is on the wrong side of the present one."""
    if shrink and size.value > present:
        raise _UnfitError(f"{what} is {present}, and {size.value} is larger; shrink only removes units, use grow-width")
    if not shrink and size.value < present:
        raise _UnfitError(f"{what} is {present}, and {size.value} is smaller; growth only adds units")
    if size.value < 1:
        raise _UnfitError(f"{what} is {present}; expected 1 to {present}, got {size.value}")


def _width_factor(table: AxisTable, size: Size | None, shrink: bool, held: frozenset[str]) -> Fraction:
    if size is None:
        return Fraction(1)
    streams, verb = widths(table, held=held), _verb(shrink)
    if not streams and (shrink or not size.relative):
        pinned = next((axis for axis in table.axes if axis.meaning == "residual width"), None)
        if pinned is None:
            raise TargetError(f"this network has no axis that can {verb}; progc inspect --axes says why")
        raise TargetError(
            f"the residual width {pinned.name} (size {pinned.size}) cannot {verb}: {pinned.reason}; use other sizes "
            "(mlp, heads) or single axes"
        )
    if size.relative:
        return _number(size)
    _check_side("the residual width", streams[0], size, shrink)
    return _number(size) / streams[0]


def _heads_factor(table: AxisTable, size: Size | None, width: Fraction, shrink: bool, held: frozenset[str]) -> Fraction:
    if size is None:
        return width
    heads = head_counts(table, held)
    if not heads:
        if shrink or size.relative or size.value > 1:
            raise TargetError(f"this network has no head axis that can {_verb(shrink)}")
        return Fraction(1)
    if size.relative:
        return _number(size)
    _check_side("the number of heads", heads[0], size, shrink)
    return _number(size) / heads[0]


def head_counts(table: AxisTable, held: frozenset[str] = frozenset()) -> list[int]:
    """Numbers of heads that can grow, smallest first, without the axes in `held`."""
    inner = inner_heads(table)
    counted = [axis for axis in table.growable if axis.meaning == "heads" and axis.name not in held]
    return sorted(axis.size for axis in counted if axis.atom not in inner)


def _checked(table: AxisTable, new: Mapping[str, Fraction], shrink: bool) -> dict[str, int]:
    """Checks that every size is an integer on the right side of the present one, and leaves out those that stay."""
    for name, value in new.items():
        axis = table[name]
        what = f"axis {name} ({axis.meaning}) has {axis.size} units and would get {float(value):g}"
        if value.denominator != 1 or value < 1:
            raise _UnfitError(f"{what}; sizes are integers of at least 1")
        if shrink and value > axis.size:
            raise _UnfitError(f"{what}; shrink only removes units, use grow-width")
        if not shrink and value < axis.size:
            raise _UnfitError(f"{what}; growth only adds units")
    return {name: int(value) for name, value in new.items() if int(value) != table[name].size}


def _nearest(program: Program, sizes: Sizes, shrink: bool, keep_frozen: bool) -> str:
    """The nearest sizes below and above that fit everywhere, in words."""
    table, text = axes_of(program), ""
    held = held_axes(program) if keep_frozen else frozenset()
    for key, base in (("width", widths(table, held=held)[:1]), ("heads", head_counts(table, held)[:1])):
        size = sizes.entries.get(key)
        if size is None or not base:
            continue
        value = math.floor(_sized(base[0], size))
        low, high = (1, base[0]) if shrink else (base[0], 2 * (value + base[0]) + 1)
        below, above = (
            next((other for other in tried if _fits(program, sizes, key, other, shrink, keep_frozen)), None)
            for tried in (range(min(value, high), low - 1, -1), range(max(value + 1, low), high))
        )
        found = [str(v) for v in (below, above) if v is not None]
        text += f"; nearest {key.removesuffix('s')}s: {', '.join(found)}" if found else ""
    return text


def _fits(program: Program, sizes: Sizes, key: str, value: int, shrink: bool, keep_frozen: bool) -> bool:
    """Whether every axis gets a size that it can have."""
    try:
        _fit(program, Sizes({**sizes.entries, key: Size(value, relative=False)}, sizes.text), shrink, keep_frozen)
    except TargetError:
        return False
    return True


def is_made(program: Program, axis: Axis) -> bool:
    """False for the features of a table that the class computes: nothing trained makes them, and they stay."""
    return any("producer" in span.sides and program.specs[span.tensor].kind == "parameter" for span in axis.spans)
