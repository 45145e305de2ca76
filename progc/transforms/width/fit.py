"""Fits sizes in proportion to the width that are not integers: which axis takes the factor, and what is rounded.

Attention keeps heads * head dim in proportion to the width. The heads take the factor if their number is then an
integer, else the head dim, else both. A GroupNorm takes the factor in its number of groups where the channels inside a
group would not grow by an integer factor (docs/growth.md 1: copying whole groups is exact, copying parts of groups is
not). All other axes are independent of one another, and are rounded to the nearest integer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from progc.analysis.axes import Axis, AxisTable
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom


def rounded(
    table: AxisTable, wanted: Mapping[str, Fraction], strict: set[str]
) -> tuple[dict[str, Fraction], list[str]]:
    """Returns the sizes, rounded half up except for those in `strict`, and one note about each rounded size."""
    new, notes = dict(wanted), []
    for name, value in wanted.items():
        if value.denominator != 1 and name not in strict:
            new[name] = Fraction(int(value + Fraction(1, 2)))
            notes.append(f"{name}: {table[name].size} -> {new[name]} ({float(value):g} rounded)")
    return new, notes


def group_sizes(table: AxisTable, factor: Fraction) -> dict[str, Fraction]:
    """Returns sizes where the number of groups of every GroupNorm takes the factor and channels per group stay."""
    inside: set[Atom] = set()
    groups: dict[Atom, None] = {}
    nodes = {(event.mode, event.node) for event in table.events if event.kind == "norm groups"}
    for event in table.events:
        if (event.mode, event.node) in nodes and event.kind == "normalise":
            inside.update(D.leaves(event.dim))
        elif event.kind == "norm groups":
            groups.update(dict.fromkeys(D.leaves(event.dim)[:1]))
    new: dict[str, Fraction] = {}
    for axis in table.growable:
        if axis.atom in inside:
            new[axis.name] = Fraction(axis.size)
        elif axis.atom in groups:
            new[axis.name] = axis.size * factor
    return new


def attention_sizes(table: AxisTable, factor: Fraction, heads: Fraction, free: bool) -> dict[str, Fraction]:
    """Returns the sizes of head and head dim axes.

    Args:
        table: the axes.
        factor: factor of the width.
        heads: factor of the number of heads.
        free: whether the heads may take another factor than `heads`.
    """
    new: dict[str, Fraction] = {}
    for together in _attentions(table):
        of_heads = [axis for axis in together if axis.meaning == "heads"]
        of_dims = [axis for axis in together if axis.meaning == "head dim"]
        share = heads
        if free and of_heads and not _whole(of_heads, heads):
            share = _share(of_heads, of_dims, factor)
        new.update({axis.name: axis.size * share for axis in of_heads})
        new.update({axis.name: axis.size * (factor / share if of_heads else factor) for axis in of_dims})
    return new


def beside_heads(table: AxisTable) -> list[list[Axis]]:
    """Returns the groups of head and head dim axes whose product stays in proportion to the width."""
    return [group for group in _attentions(table) if any(axis.meaning == "heads" for axis in group)]


def _attentions(table: AxisTable) -> list[list[Axis]]:
    inner = inner_heads(table)
    axes = [axis for axis in table.growable if axis.meaning in ("heads", "head dim") and axis.atom not in inner]
    return _beside(table, axes)


def _share(of_heads: Sequence[Axis], of_dims: Sequence[Axis], factor: Fraction) -> Fraction:
    """The factor of the number of heads.

    1 if the head dims can take the whole factor, else the smallest factor that gives integers. When attention shrinks
    it is also the smallest one, so that head dims shrink as little as possible.
    """
    least = of_heads[0]
    limit = least.size * factor
    counts = range(math.ceil(limit), least.size + 1) if factor < 1 else range(least.size, int(limit) + 1)
    for count in counts:
        share = Fraction(count, least.size)
        if _whole(of_heads, share) and _whole(of_dims, factor / share):
            return share
    return factor


def _whole(axes: Sequence[Axis], factor: Fraction) -> bool:
    return all((axis.size * factor).denominator == 1 for axis in axes)


def _beside(table: AxisTable, axes: Sequence[Axis]) -> list[list[Axis]]:
    """Axes in groups: those that occur together in a tensor dim, directly or through other axes."""
    known = {axis.atom: axis for axis in axes}
    group = {axis.atom: [axis] for axis in axes}
    for dims in table.tensor_dims.values():
        for dim in dims:
            present = [atom for atom in dict.fromkeys(D.leaves(dim)) if atom in known]
            for atom in present[1:]:
                first, other = group[present[0]], group[atom]
                if first is not other:
                    first.extend(other)
                    for axis in other:
                        group[axis.atom] = first
    return list({id(members): members for members in group.values()}.values())


def inner_heads(table: AxisTable) -> set[Atom]:
    """Factors inside a head axis, such as the group size of grouped queries; only the outermost factor grows."""
    inner: set[Atom] = set()
    outer: set[Atom] = set()
    for event in table.events:
        if event.kind == "heads":
            atoms = [atom for atom in D.leaves(event.dim) if not atom.extent]
            outer.update(atoms[:1])
            inner.update(atoms[1:])
    return inner - outer
