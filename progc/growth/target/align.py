"""Aligns a program with the program of a target model: by names, parameter shapes and graphs.

The analysis of the target gives the size of each axis: dims of tensors with the same name are matched factor by factor.
Differences that cannot be matched are listed, module by module and with the reason. Alignment only finds sizes; whether
growth to them is exact is decided by `progc/transforms/width/plan.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from progc.analysis.axes import AxisTable, axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import KERNEL, POSITIONS, Atom, Dim
from progc.analysis.chains import chains_of
from progc.errors import TargetError, first_of
from progc.growth.target.outputs import output_axis
from progc.ir.differences import parting
from progc.ir.program import Program

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Sizes of the target: axis name to size, for the axes that get wider and for the outputs that get more units."""

    widths: dict[str, int]
    outputs: dict[str, int]


def target_depths(source: Program, target: Program) -> dict[str, int]:
    """Returns chain name to the depth in the target, for the chains of `source` that get deeper.

    Raises:
        TargetError: a chain is shorter in the target, or several chains share a container that gets more blocks, so
            that the numbers do not show which blocks of the target are new.
    """
    depths: dict[str, int] = {}
    containers: dict[str, str] = {}
    wanted = {chain.name: chain for chain in chains_of(target)}
    for chain in chains_of(source):
        other = wanted.get(chain.name)
        if other is None or other.siblings == chain.siblings:
            continue
        if other.siblings < chain.siblings:
            raise TargetError(
                f"the target is smaller: {chain.name} has {chain.siblings} blocks in the source and {other.siblings} "
                f"in {target.class_name}; growth only adds blocks"
            )
        first = containers.setdefault(chain.pattern, chain.name)
        if first != chain.name:
            raise TargetError(
                f"{first} and {chain.name} are in one container, which has {chain.siblings} blocks in the "
                f"source and {other.siblings} in {target.class_name}: the block numbers do not show which "
                "blocks are new; set the depth of each chain in a pipeline, such as "
                f"grow-depth{{to={first}:...}}"
            )
        depths[chain.name] = other.siblings
    return depths


def target_widths(source: Program, target: Program) -> dict[str, int]:
    """Returns axis name to the size in the target, for the axes that get wider; see `align`."""
    return align(source, target).widths


def align(source: Program, target: Program) -> Alignment:
    """Returns the size in the target of every axis of the source that has another size there.

    Raises:
        TargetError: tensors that do not correspond, listed by module; a smaller target; a pinned axis.
    """
    _check_names(source, target)
    sizes: dict[Atom, int] = {}
    open_dims: list[tuple[str, Dim, int]] = []
    for name, dims in axes_of(source).tensor_dims.items():
        if name.startswith("_constants.") or name not in target.tensors:
            continue  # every persistent tensor has a partner: _check_names
        shape = tuple(target.tensors[name].shape)
        if len(shape) != len(dims):
            raise TargetError(f"{name} has {len(dims)} dims in the source and {len(shape)} in the target")
        theirs = axes_of(target).tensor_dims.get(name)
        for position, dim in enumerate(dims):
            other = theirs[position] if theirs is not None else None
            if other is None or not _match(dim, other, sizes):
                open_dims.append((name, dim, shape[position]))
    _solve(open_dims, sizes)
    _check_shapes(source, target, sizes)
    return _by_axis(axes_of(source), sizes)


def _check_names(source: Program, target: Program) -> None:
    ours = set(source.persistent())
    theirs = set(target.persistent())
    lines = []
    for what, names in (("only in the source", ours - theirs), ("only in the target", theirs - ours)):
        modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in sorted(names)))
        if modules:
            lines.append(f"{what}: {first_of(modules, _SHOWN)}")
    if lines:
        raise TargetError(
            f"{source.class_name} does not grow into {target.class_name}; {'; '.join(lines)}{_parts_at(source, target)}"
        )


def _parts_at(source: Program, target: Program) -> str:
    where = parting(source, target)
    return f"; {where}" if where else ""


def _match(ours: Dim, theirs: Dim, sizes: dict[Atom, int]) -> bool:
    """Assigns sizes factor by factor; returns False if the two dims are factored differently."""
    a, b = D.resolve(ours), D.resolve(theirs)
    if len(a) != len(b):
        return False
    pairs: list[tuple[Atom, int]] = []
    for x, y in zip(a, b, strict=True):
        if x.segments is not None and y.segments is not None and len(x.segments) == len(y.segments):
            if not all(_match(s, t, sizes) for s, t in zip(x.segments, y.segments, strict=True)):
                return False
        elif x.segments is None and y.segments is None:
            pairs.append((x, y.size))
        else:
            return False
    if any(sizes.get(atom, size) != size for atom, size in pairs):
        return False
    sizes.update(pairs)
    return True


def _solve(open_dims: list[tuple[str, Dim, int]], sizes: dict[Atom, int]) -> None:
    """Solves dims that have one factor of unknown size left."""
    for _ in range(len(open_dims)):
        progress = False
        for _name, dim, total in open_dims:
            unknown = [atom for atom in D.leaves(dim) if atom not in sizes and not atom.reasons and not atom.extent]
            if len(unknown) == 1 and all(atom.segments is None for atom in D.resolve(dim)):
                known = math.prod(sizes.get(atom, atom.size) for atom in D.resolve(dim) if atom is not unknown[0])
                if total % known == 0:
                    sizes[unknown[0]] = total // known
                    progress = True
        if not progress:
            return


def _check_shapes(source: Program, target: Program, sizes: dict[Atom, int]) -> None:
    parted = ""
    wrong: list[str] = []
    smaller: list[str] = []
    for name, dims in axes_of(source).tensor_dims.items():
        if name.startswith("_constants.") or not source.specs[name].persistent:
            continue
        have, wanted = tuple(source.tensors[name].shape), tuple(target.tensors[name].shape)
        change = f"{name} {list(have)} -> {list(wanted)}"
        told = list(_pinned(source, name, dims, wanted, sizes))
        wrong += told
        if not told and any(w < h for w, h in zip(wanted, have, strict=True)):
            smaller.append(change)
        if not told and tuple(D.resized(dim, sizes) for dim in dims) != wanted:
            wrong.append(change + _two_sizes(axes_of(source), dims, wanted, sizes))
            parted = parted or _parts_at(source, target)
    for name, tensor in source.tensors.items():
        if source.specs[name].persistent and source.tied.get(name, name) not in axes_of(source).tensor_dims:
            have, wanted = tuple(tensor.shape), tuple(target.tensors[name].shape)
            if have != wanted:
                change = f"{name} {list(have)} -> {list(wanted)}"
                wrong.append(f"{change} (no operation reads it, so how it grows is unknown)")
    if smaller:
        raise TargetError(
            f"the target is smaller than the source: {_some(smaller)}; growth only adds units, swap source and target"
        )
    if wrong:
        raise TargetError(f"{source.class_name} does not grow into {target.class_name}: {_some(wrong)}{parted}")


def _two_sizes(table: AxisTable, dims: tuple[Dim, ...], wanted: tuple[int, ...], sizes: dict[Atom, int]) -> str:
    """Reports where one axis of the source has several sizes in the target."""
    for dim, size in zip(dims, wanted, strict=True):
        atoms = D.resolve(dim)
        axis = table.axis_of(atoms[0]) if len(atoms) == 1 else None
        if axis is not None and sizes.get(axis.atom, size) != size:
            return f" (axis {axis.name} has one size in the source, {sizes[axis.atom]} and {size} in the target)"
    return ""


def _pinned(
    source: Program, name: str, dims: tuple[Dim, ...], wanted: tuple[int, ...], sizes: dict[Atom, int]
) -> Iterator[str]:
    """Why dims of this tensor cannot have the target's sizes, each reason once."""
    have = tuple(source.tensors[name].shape)
    change = f"{name} {list(have)} -> {list(wanted)}"
    told: set[str] = set()
    for atom in (atom for dim in dims for atom in D.leaves(dim)):
        if sizes.get(atom, atom.size) == atom.size or not (atom.reasons or atom.extent):
            continue
        if output_axis(axes_of(source), atom) is not None:
            continue
        if KERNEL in atom.reasons and len(have) > 2:
            kernels = ["x".join(map(str, shape[2:])) for shape in (have, wanted)]
            text = f"{name}: convolution kernel {kernels[0]} in the source, {kernels[1]} in the target"
        elif atom.reasons and POSITIONS not in atom.reasons:
            text = f"{change} ({'; '.join(atom.reasons)})"
        else:
            text = (
                f"{change} ({POSITIONS}; a change of resolution is not a growth: build both models for one input size)"
            )
        if text not in told:
            told.add(text)
            yield text


def _some(lines: list[str]) -> str:
    return first_of(list(dict.fromkeys(lines)), _SHOWN)


def _by_axis(table: AxisTable, sizes: dict[Atom, int]) -> Alignment:
    found = Alignment({}, {})
    for axis in table.axes:
        size = sizes.get(axis.atom, axis.size)
        if size != axis.size:
            (found.widths if axis.growable else found.outputs)[axis.name] = size
    return found
