"""From sizes as users write them (`width=768,heads=12`) to a size for every axis of a network.

`width` is the size of the residual stream (the narrowest one, where stages differ) and widens everything in
proportion: MLP hidden sizes, conv channels, heads. Head dims, groups and channel multipliers keep their sizes, as
they do between the published sizes of a family; a head dim grows where width and heads together ask for it. What
does not come out whole is fitted (`progc/transforms/width/fit.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from progc.analysis.axes import Axis, AxisTable, axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Dim
from progc.analysis.chains import chains_of
from progc.errors import TargetError, did_you_mean
from progc.ir.program import Program
from progc.models.sizes import KEYS, Size, Sizes
from progc.transforms.width.fit import attention_sizes, beside_heads, group_sizes, inner_heads, rounded

FIXED = ("norm groups", "conv groups", "channel multiplier")


def axis_sizes(program: Program, sizes: Sizes) -> dict[str, int]:
    """New size for every axis that `sizes` changes.

    Raises:
        TargetError: a size that is no whole number where it has to be one, below the present one, or an unknown key.
    """
    return fitted_sizes(program, sizes)[0]


def fitted_sizes(program: Program, sizes: Sizes) -> tuple[dict[str, int], list[str]]:
    """As `axis_sizes`, with a note about every axis whose proportional size was rounded."""
    _check_keys(program, sizes)
    table = axes_of(program)
    wanted = _wanted(program, sizes)
    strict = _strict(table, sizes)
    whole, notes = rounded(table, wanted, strict)
    found = _whole(program, whole, sizes)
    width = sizes.entries.get("width")
    if width is not None and not width.relative and widths(table, found)[0] != width.value:
        raise TargetError(
            f"{sizes.text or str(sizes)}: the residual width would get {widths(table, found)[0]}, not "
            f"{int(width.value)}: it is made of whole parts{_nearest(program, sizes)}"
        )
    return found, notes


def _strict(table: AxisTable, sizes: Sizes) -> set[str]:
    """Axes that may not be rounded: those that the user names, and those that heads and width decide together."""
    named = {key for key in sizes.entries if key not in KEYS}
    if sizes.entries.keys() & {"mlp", "mlp_ratio"}:
        named |= {axis.name for axis in table.growable if axis.meaning == "hidden width"}
    if "head_dim" in sizes.entries:
        named |= {axis.name for axis in table.growable if axis.meaning == "head dim"}
    return named | {axis.name for together in beside_heads(table) for axis in together}


def _wanted(program: Program, sizes: Sizes) -> dict[str, Fraction]:
    """Size of every axis that `sizes` speaks about, whole or not."""
    table = axes_of(program)
    factor = _width_factor(table, sizes.entries.get("width"))
    heads = _heads_factor(table, sizes.entries.get("heads"), factor)
    new: dict[str, Fraction] = {}
    inner = inner_heads(table)
    for axis in table.growable:
        if axis.meaning in FIXED or axis.atom in inner:
            continue
        if axis.meaning in ("heads", "head dim") or not is_made(program, axis):
            continue
        new[axis.name] = axis.size * factor
    new.update(attention_sizes(table, factor, heads, free="heads" not in sizes.entries))
    if factor.denominator != 1:
        new.update(group_sizes(table, factor))
    for key in ("head_dim", "mlp", "mlp_ratio"):
        if key in sizes.entries:
            _apply(table, new, key, sizes.entries[key], factor)
    for key, size in sizes.entries.items():
        if key not in KEYS and any(axis.name == key for axis in table.axes):
            new[key] = table[key].size * Fraction(size.value) if size.relative else Fraction(size.value)
    return new


def _check_keys(program: Program, sizes: Sizes) -> None:
    names = [axis.name for axis in axes_of(program).axes]
    chains = [chain.name for chain in chains_of(program)]
    for key in sizes.entries:
        if key not in KEYS and key not in names and key not in chains:
            hint = did_you_mean(key, [*KEYS, *names, *chains])
            raise TargetError(f"`{key}` is no size, axis or chain of this network{hint}; progc inspect lists them")


def widths(table: AxisTable, new: Mapping[str, int] | None = None) -> list[int]:
    """Sizes of the residual streams that can grow, narrowest first; of all growable dims if there is no residual.

    Args:
        new: sizes by axis name that replace the present ones.

    A stream may be a product of axes (a GroupNorm cuts channels into groups x inside); its size is that of the product.
    """
    sizes = {table[name].atom: size for name, size in (new or {}).items()}
    found: set[int] = set()
    for event in table.events:
        if event.kind == "residual":
            found.update(D.resized(part, sizes) for part in _products(event.dim) if _is_stream(table, part))
    if not any(axis.meaning == "residual width" for axis in table.axes):
        for dims in table.tensor_dims.values():
            found.update(D.resized(part, sizes) for dim in dims for part in _products(dim) if _can_grow(table, part))
    return sorted(found)


def _products(dim: Dim) -> list[Dim]:
    """The dim itself, or the parts that it is a concatenation of."""
    dim = D.resolve(dim)
    if len(dim) == 1 and dim[0].segments is not None:
        return [part for segment in dim[0].segments for part in _products(segment)]
    return [dim]


def _is_stream(table: AxisTable, dim: Dim) -> bool:
    """True if a residual width that can grow is part of the dim: rotated queries are added too, and are none."""
    axes = [table.axis_of(atom) for atom in D.leaves(dim)]
    return any(axis is not None and axis.growable and axis.meaning == "residual width" for axis in axes)


def _can_grow(table: AxisTable, dim: Dim) -> bool:
    axes = [table.axis_of(atom) for atom in D.leaves(dim)]
    return any(axis is not None and axis.growable for axis in axes)


def _width_factor(table: AxisTable, size: Size | None) -> Fraction:
    if size is None:
        return Fraction(1)
    if size.relative:
        return Fraction(size.value).limit_denominator(10**6)
    streams = widths(table)
    pinned = [axis for axis in table.axes if axis.meaning == "residual width"]
    if not streams and pinned:
        raise TargetError(
            f"width={size.value}: the residual width {pinned[0].name} (size {pinned[0].size}) cannot grow: "
            f"{pinned[0].reason}; name other sizes (mlp, heads) or single axes"
        )
    if not streams:
        raise TargetError(f"width={size.value}: this network has no axis that can grow; progc inspect --axes says why")
    if size.value < streams[0]:
        raise TargetError(f"width={size.value} is smaller than the source's {streams[0]}; growth only adds units")
    return Fraction(int(size.value), streams[0])


def _heads_factor(table: AxisTable, size: Size | None, width: Fraction) -> Fraction:
    heads = head_counts(table)
    if size is None:
        return width
    if not heads:
        if size.relative or size.value > 1:
            raise TargetError(f"heads={size.value}: this network has no head axis that can grow")
        return Fraction(1)
    if size.relative:
        return Fraction(size.value).limit_denominator(10**6)
    if size.value < heads[0]:
        raise TargetError(f"heads={size.value} is smaller than the source's {heads[0]}; growth only adds units")
    return Fraction(int(size.value), heads[0])


def head_counts(table: AxisTable) -> list[int]:
    inner = inner_heads(table)
    return sorted(axis.size for axis in table.growable if axis.meaning == "heads" and axis.atom not in inner)


def _apply(table: AxisTable, new: dict[str, Fraction], key: str, size: Size, width: Fraction) -> None:
    meaning = "head dim" if key == "head_dim" else "hidden width"
    chosen = [axis for axis in table.growable if axis.meaning == meaning]
    if not chosen:
        raise TargetError(f"{key}={size.value}: this network has no {meaning} axis that can grow")
    for axis in chosen:
        if key == "mlp_ratio":
            new[axis.name] = widths(table)[0] * width * Fraction(size.value)
        else:
            new[axis.name] = axis.size * Fraction(size.value) if size.relative else Fraction(size.value)


def _whole(program: Program, new: dict[str, Fraction], sizes: Sizes) -> dict[str, int]:
    """Checks that every size is a whole number and none shrinks; drops what stays."""
    table, text = axes_of(program), sizes.text or str(sizes)
    for name, value in new.items():
        axis = table[name]
        what = f"{text}: axis {name} ({axis.meaning}) has {axis.size} units and would get {float(value):g}"
        if value.denominator != 1:
            raise TargetError(f"{what}; sizes are whole numbers{_nearest(program, sizes)}")
        if value < axis.size:
            raise TargetError(f"{what}; growth only adds units{_nearest(program, sizes)}")
    return {name: int(value) for name, value in new.items() if int(value) != table[name].size}


def _nearest(program: Program, sizes: Sizes) -> str:
    """The nearest sizes below and above that fit everywhere, in words."""
    table, text = axes_of(program), ""
    for key, base in (("width", widths(table)[:1]), ("heads", head_counts(table)[:1])):
        size = sizes.entries.get(key)
        if size is None or not base:
            continue
        value = math.floor(base[0] * size.value) if size.relative else int(size.value)
        below = next((v for v in range(value, base[0] - 1, -1) if _fits(program, sizes, key, v)), None)
        above = next((v for v in range(value + 1, 2 * (value + base[0]) + 1) if _fits(program, sizes, key, v)), None)
        found = [str(v) for v in (below, above) if v is not None]
        text += f"; nearest {key.removesuffix('s')}s: {', '.join(found)}" if found else ""
    return text


def _fits(program: Program, sizes: Sizes, key: str, value: int) -> bool:
    """Whether every axis gets a size that it can have."""
    table, wish = axes_of(program), Sizes({**sizes.entries, key: Size(value, relative=False)}, sizes.text)
    try:
        new = rounded(table, _wanted(program, wish), _strict(table, wish))[0]
    except TargetError:
        return False
    if any(size < table[name].size or size.denominator != 1 for name, size in new.items()):
        return False
    return key != "width" or widths(table, {name: int(size) for name, size in new.items()})[0] == value


def is_made(program: Program, axis: Axis) -> bool:
    """False for the features of a table that the class computes: nothing trained makes them, and they stay."""
    return any("producer" in span.sides and program.specs[span.tensor].kind == "parameter" for span in axis.spans)
