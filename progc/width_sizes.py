"""From sizes as users write them (`width=768,heads=12`) to a size for every axis of a network.

`width` is the size of the residual stream (the narrowest one, where stages differ) and widens everything in
proportion: MLP hidden sizes, conv channels, heads. Head dims, norm groups and conv groups keep their sizes, as
they do between the published sizes of a family; a head dim grows where width and heads together ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from progc.axes import Axis, AxisTable
from progc.axes import dims as D
from progc.axes.dims import Atom
from progc.errors import TargetError
from progc.program import Program
from progc.sizes import KEYS, Size, Sizes
from progc.suggestions import did_you_mean

_FIXED = ("norm groups", "conv groups")


def axis_sizes(program: Program, sizes: Sizes) -> dict[str, int]:
    """New size for every axis that `sizes` changes.

    Raises:
        TargetError: a size that is no whole number somewhere, below the present one, or an unknown key.
    """
    table = program.axes
    _check_keys(program, sizes)
    factor = _width_factor(table, sizes.entries.get("width"))
    heads = _heads_factor(table, sizes.entries.get("heads"), factor)
    new: dict[str, Fraction] = {}
    inner = inner_heads(table)
    for axis in table.growable:
        if axis.meaning in _FIXED or axis.atom in inner:
            continue
        if axis.meaning == "heads":
            new[axis.name] = axis.size * heads
        elif axis.meaning == "head dim":
            beside = has_heads(table, axis)
            new[axis.name] = axis.size * (factor / heads if beside else factor)
        else:
            new[axis.name] = axis.size * factor
    for key in ("head_dim", "mlp", "mlp_ratio"):
        if key in sizes.entries:
            _apply(table, new, key, sizes.entries[key], factor)
    for key, size in sizes.entries.items():
        if key not in KEYS and any(axis.name == key for axis in table.axes):
            new[key] = table[key].size * Fraction(size.value) if size.relative else Fraction(size.value)
    return _whole(table, new, sizes)


def _check_keys(program: Program, sizes: Sizes) -> None:
    names = [axis.name for axis in program.axes.axes]
    chains = [chain.name for chain in program.chains]
    for key in sizes.entries:
        if key not in KEYS and key not in names and key not in chains:
            hint = did_you_mean(key, [*KEYS, *names, *chains])
            raise TargetError(f"`{key}` is no size, axis or chain of this network{hint}; progc inspect lists them")


def residual_axes(table: AxisTable) -> list[Axis]:
    """Growable residual widths, narrowest first; all growable axes of a network that has none."""
    found = [axis for axis in table.growable if axis.meaning == "residual width"]
    return sorted(found or table.growable, key=lambda axis: axis.size)


def inner_heads(table: AxisTable) -> set[Atom]:
    """Factors inside a head axis (the group size of grouped queries): the outermost one grows."""
    inner: set[Atom] = set()
    outer: set[Atom] = set()
    for event in table.events:
        if event.kind == "heads":
            atoms = [atom for atom in D.leaves(event.dim) if not atom.extent]
            outer.update(atoms[:1])
            inner.update(atoms[1:])
    return inner - outer


def has_heads(table: AxisTable, axis: Axis) -> bool:
    """True if a tensor dim holds this head dim together with a head axis."""
    for span in axis.spans:
        for atom in D.leaves(table.tensor_dims[span.tensor][span.dim]):
            other = table.axis_of(atom)
            if other is not None and other.meaning == "heads" and other.growable:
                return True
    return False


def _width_factor(table: AxisTable, size: Size | None) -> Fraction:
    if size is None:
        return Fraction(1)
    if size.relative:
        return Fraction(size.value).limit_denominator(10**6)
    axes = residual_axes(table)
    if not axes:
        raise TargetError(f"width={size.value}: this network has no axis that can grow; progc inspect --axes says why")
    if size.value < axes[0].size:
        raise TargetError(f"width={size.value} is smaller than the source's {axes[0].size}; growth only adds units")
    return Fraction(int(size.value), axes[0].size)


def _heads_factor(table: AxisTable, size: Size | None, width: Fraction) -> Fraction:
    inner = inner_heads(table)
    heads = sorted(axis.size for axis in table.growable if axis.meaning == "heads" and axis.atom not in inner)
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


def _apply(table: AxisTable, new: dict[str, Fraction], key: str, size: Size, width: Fraction) -> None:
    meaning = "head dim" if key == "head_dim" else "hidden width"
    chosen = [axis for axis in table.growable if axis.meaning == meaning]
    if not chosen:
        raise TargetError(f"{key}={size.value}: this network has no {meaning} axis that can grow")
    for axis in chosen:
        if key == "mlp_ratio":
            new[axis.name] = residual_axes(table)[0].size * width * Fraction(size.value)
        else:
            new[axis.name] = axis.size * Fraction(size.value) if size.relative else Fraction(size.value)


def _whole(table: AxisTable, new: dict[str, Fraction], sizes: Sizes) -> dict[str, int]:
    """Checks that every size is a whole number and none shrinks; drops what stays."""
    text = sizes.text or str(sizes)
    odd = [(table[name], value) for name, value in new.items() if value.denominator != 1]
    if odd:
        axis, value = odd[0]
        near = _nearest(table, [table[name] for name in new], "width" in sizes.entries)
        raise TargetError(
            f"{text}: axis {axis.name} ({axis.meaning}) has {axis.size} units and would get {float(value):g}; "
            f"sizes are whole numbers{near}"
        )
    for name, value in new.items():
        if value < table[name].size:
            axis = table[name]
            raise TargetError(
                f"{text}: axis {name} ({axis.meaning}) has {axis.size} units and would get {int(value)}; growth only "
                f"adds units"
            )
    return {name: int(value) for name, value in new.items() if int(value) != table[name].size}


def _nearest(table: AxisTable, axes: Iterable[Axis], by_width: bool) -> str:
    """Widths around which every axis is whole: multiples of the step that the smallest axes allow."""
    if not by_width:
        return ""
    base = residual_axes(table)[0].size
    moving = [axis.size for axis in axes]
    step = base // math.gcd(base, *moving)
    return f"; width can be {base} plus any multiple of {step}" if step > 1 else ""
