"""Undoes a lift (`revert`, `written_back`), and measures how lossless a growth was (`measure`, `tolerance`).

Right after growth, `revert` returns the old tensors, up to the rounding of factors such as 1/sqrt(2). After more
training it returns the closest small network that the lift allows: it keeps the row of the first copy in each group,
adds up the columns by which consumers read the copies, divides by the factors, and drops inserted blocks and new units.
Copies that have diverged do not compute one function, so the result is a starting point for more training and not an
equivalent network. `written_back` undoes `shrink`: it writes the tensors of a sub-network into the full ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from progc.errors import InputError
from progc.ir.check import Difference, compare
from progc.ir.deferred import defer, identity, values
from progc.ir.program import Program
from progc.lift.entry import Split, TensorLift
from progc.lift.index_map import IndexMap
from progc.lift.lift import Lift, keep_type
from progc.lift.shares import along, group_sum

TOLERANCE = 1e-9
"""Largest relative difference in float64 that counts as lossless."""

ROUNDED = 1e-6
"""The tolerance where a factor such as 1/sqrt(2), or the sum with a row, was rounded to the parameters' dtype."""

_STIR = 0.02
"""Standard deviation of the noise that is added to weights which would hide errors."""

# `fills` concern new units only, which are dropped.
_FIELDS = frozenset({"name", "source", "dims", "splits", "scales", "fresh", "init", "fill", "eye", "fills", "average"})
_KINDS = frozenset({"copy", "free"})
_INITS = frozenset({"copy", "zero", "random"})


def revert(lift: Lift, grown: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors before a growth step, computed from those after it.

    Args:
        lift: the lift of the step.
        grown: all tensors after growth: `lift.apply(tensors)`, or these tensors after more training. Names that share
            the memory of one tensor stay tied.

    Returns:
        All tensors before growth, by name; tensors that the growth did not change are the same objects.

    Raises:
        InputError: a tensor is missing or does not have its grown shape, the growth replaced its values, or it was
            grown in a way that cannot be undone; the message gives the tensor.
    """
    _check_grown(lift)
    for entry in lift.tensors:
        _check_known(entry)
    entries = {entry.name for entry in lift.tensors} | {made.name for made in lift.made}
    old = {name: tensor for name, tensor in grown.items() if name not in entries}
    made: dict[tuple[object, TensorLift], torch.Tensor] = {}
    for source, entry in _best(lift).items():
        if source in old and source not in lift.removed:
            continue  # the entry of an inserted block; its source still exists
        if entry.name not in grown:
            raise InputError(f"revert: tensor {entry.name} is missing; give every tensor of the grown network")
        tensor = grown[entry.name]
        key = (identity(tensor), dataclasses.replace(entry, name="", source="", fresh=False))
        if key not in made:
            made[key] = _shrunk(tensor, entry)
        old[source] = made[key]
    return old


def _best(lift: Lift) -> dict[str, TensorLift]:
    """The entry that best preserves the values of each source: its successor, or a copy."""
    found: dict[str, TensorLift] = {}
    for entry in lift.tensors:
        known = found.get(entry.source)
        if known is None or _rank(entry) < _rank(known):
            found[entry.source] = entry
    return found


def _rank(entry: TensorLift) -> tuple[bool, bool]:
    """Sorts entries that lost the values of their source last, and inserted blocks after others."""
    silent = any(value == 0 for scale in entry.scales for value in scale.values)
    gone = entry.fill is not None or entry.eye is not None or entry.average or silent
    return gone or (entry.init == "random" and not any(entry.dims)), entry.fresh


def _check_grown(lift: Lift) -> None:
    """Raises an InputError for a step that shrank: its result does not hold what it removed."""
    folded = {add.table for entry in lift.tensors for add in entry.adds}  # refused later, with another message
    lost = lift.removed - {entry.source for entry in lift.tensors} - folded
    lost |= {entry.source for entry in lift.tensors if entry.storage}
    if lost:
        raise InputError(
            f"revert: `shrink` removed or cut {min(lost)}, and the small network does not hold the rest; write its "
            "tensors into the full ones with progc.transforms.shrinking.written_back"
        )


def _check_known(entry: TensorLift) -> None:
    """Raises an InputError for kinds of growth that `revert` does not support."""
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if field.name not in _FIELDS and value != field.default and value:
            raise InputError(f"revert: {entry.name} was grown with {field.name}, which cannot be undone yet")
    kinds = {kind for index_map in entry.dims if index_map is not None for kind in _kinds(index_map)}
    unknown = sorted((kinds - _KINDS) | ({entry.init} - _INITS))
    if unknown:
        raise InputError(f"revert: {entry.name} was grown by `{unknown[0]}`, which cannot be undone yet")


def _kinds(index_map: IndexMap) -> set[str]:
    if index_map.kind == "leaf":
        return {index_map.how}
    return set().union(*(_kinds(part) for part in index_map.parts))


def _shrunk(tensor: torch.Tensor, entry: TensorLift) -> torch.Tensor:
    _check_undoable(tensor, entry)
    if not entry.scales and not any(entry.dims):
        return tensor
    value = tensor.detach()
    value = value.double() if value.is_floating_point() else value  # sums of copies lose nothing
    contracted = {split.dim for split in entry.splits}
    for dim, index_map in sorted(enumerate(entry.dims), key=lambda item: item[0] not in contracted):
        if index_map is not None and not index_map.unchanged:
            for split in entry.splits:
                if split.dim == dim and value.is_floating_point():
                    value = _gathered(value, index_map, split)
            value = value.index_select(dim, _first(index_map).to(value.device))
    for scale in entry.scales:
        factor = torch.tensor(scale.values, dtype=torch.float64, device=value.device)
        value = value / along(factor, scale.dim, value)
    return keep_type(tensor, value.to(tensor.dtype))


def _check_undoable(tensor: torch.Tensor, entry: TensorLift) -> None:
    if _rank(entry)[0]:
        raise InputError(f"revert: growth replaced the values of {entry.source}, and no tensor holds them now")
    for dim, index_map in enumerate(entry.dims):
        if index_map is not None and (dim >= tensor.dim() or tensor.shape[dim] != index_map.new):
            found = list(tensor.shape)
            raise InputError(
                f"revert: {entry.name} has shape {found}; expected {index_map.new} in dim {dim}, its size after growth"
            )


def _gathered(value: torch.Tensor, index_map: IndexMap, split: Split) -> torch.Tensor:
    """Replaces every copy along `split.dim` by the sum of all copies of its unit (undoes `shares.divide`)."""
    over = split.over if split.over is not None else index_map
    index, old = over.index(), kept_units(over)
    shared = (over.counts() > 1) & old
    if split.where is not None:
        shared &= torch.tensor(split.where)[index_map.index()]
    own = torch.where(along(old.to(value.device), split.dim, value), value, torch.zeros_like(value))
    total = group_sum(own, split.dim, index.to(value.device))
    return torch.where(along(shared.to(value.device), split.dim, value), total, value)


def _first(index_map: IndexMap) -> torch.Tensor:
    """The first copy of each old unit in the grown dim: int64 `[old]`."""
    places = torch.arange(index_map.new)
    own = kept_units(index_map)
    first = torch.full((index_map.old,), index_map.new, dtype=torch.int64)
    return first.scatter_reduce(0, index_map.index()[own], places[own], "amin")


def kept_units(index_map: IndexMap) -> torch.Tensor:
    """Returns which units are copies of an old unit, rather than new ones: bool `[new]`."""
    if index_map.kind == "leaf":
        return torch.zeros(index_map.new, dtype=torch.bool) if index_map.old == 0 else ~index_map.fresh()
    if index_map.kind == "concat":
        return torch.cat([kept_units(part) for part in index_map.parts])
    total = torch.ones(1, dtype=torch.bool)
    for part in index_map.parts:
        total = (total[:, None] & kept_units(part)[None, :]).reshape(-1)
    return total


def kept(lift: Lift, name: str) -> tuple[str, tuple[torch.Tensor | None, ...]]:
    """Returns the tensor and the units that a tensor was made from.

    Args:
        lift: the lift of `shrink`, or of a growth.
        name: the tensor after the step; without an entry in the lift it is unchanged.

    Returns:
        The name before the step, and indices per dim into the old size, int64 `[new size]`: None for a dim that did not
        change; an empty tuple if no dim changed.
    """
    entry = next((entry for entry in lift.tensors if entry.name == name), None)
    if entry is None:
        return name, ()
    return entry.source, tuple(None if m is None or m.unchanged else m.index() for m in entry.dims)


def written_back(
    lift: Lift, small: Mapping[str, torch.Tensor], full: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns the full tensors with the tensors of a sub-network written into them; `full` itself is not changed.

    Tensors that share storage need no writing. Copied ones (storage=copy, or units that no view can hold) are divided
    by the factor that adapted them to their fan-in, and written. Tensors that were not only cut, such as tables
    resampled for another input size, keep the values of `full`.

    Args:
        lift: the lift of the pass `shrink`.
        small: all tensors of the sub-network: the result of the lift, or these tensors after training.
        full: all tensors of the full program.

    Returns:
        All tensors of the full program; those that the sub-network does not hold, or shares, are the same objects.

    Raises:
        InputError: a tensor is missing or does not have the shape that the lift gave it.
    """
    result = dict(full)
    made: dict[object, torch.Tensor] = {}
    entries = {entry.source: entry for entry in lift.tensors}
    gone = lift.removed | {entry.name for entry in lift.tensors}
    for name, tensor in full.items():
        if name in gone and name not in entries:
            continue  # removed; another tensor may have the name now
        entry = entries.get(name, TensorLift(name, name))
        if any(not step.storage and not step.plain for step in entry.steps):
            continue
        if entry.name not in small:
            raise InputError(f"written_back: tensor {entry.name} is missing; give every tensor of the sub-network")
        if identity(tensor) not in made:
            made[identity(tensor)] = _put(entry, small[entry.name], tensor)
        result[name] = made[identity(tensor)]
    return result


def _put(entry: TensorLift, small: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    indices = [
        torch.arange(size) if index_map is None else index_map.index()
        for size, index_map in zip(full.shape, entry.dims or (None,) * full.dim(), strict=True)
    ]
    sizes = [len(index) for index in indices]
    if list(small.shape) != sizes:
        raise InputError(
            f"written_back: {entry.name} has shape {list(small.shape)}; expected {sizes}, as the lift made it"
        )
    if identity(small) == identity(full) or small.numel() == 0:
        return full
    value = small.detach()
    for scale in entry.scales:
        factor = torch.tensor(scale.values, dtype=torch.float64)[indices[scale.dim]]
        shape = [-1 if dim == scale.dim else 1 for dim in range(value.dim())]
        value = value / factor.to(value.device, value.dtype).reshape(shape)
    changed = full.detach().clone()
    if indices:
        grid = torch.meshgrid(*(index.to(full.device) for index in indices), indexing="ij")
        changed[grid] = value.to(full.device, full.dtype)
    else:
        changed.copy_(value)
    if torch.equal(changed, full.detach()):
        return full  # a view, or nothing was trained
    return nn.Parameter(changed, requires_grad=full.requires_grad) if isinstance(full, nn.Parameter) else changed


def measure(before: Program, after: Program, lifts: Sequence[Lift], *, seed: int) -> Difference:
    """Measures how far a grown program is from its source, in float64 and eval mode.

    A network with outputs of zero (a head that starts at zero) would agree with any other such network. In this case,
    noise is added to the source's parameters and grown by the same lifts before both are compared.

    Raises:
        CheckError: see `progc.ir.check.compare`.
    """
    difference = compare(before, after, seed=seed)
    if not difference.silent:
        return difference
    tensors: Mapping[str, torch.Tensor] = _stirred(before, seed)
    source = before.replace(tensors=tensors)
    for lift in lifts:
        tensors = lift.apply(tensors)  # deferred: no complete noisy copy of either network exists
    return compare(source, after.replace(tensors={name: tensors[name] for name in after.tensors}), seed=seed)


def tolerance(lifts: Sequence[Lift]) -> float:
    """Returns the largest relative difference that counts as lossless for these lifts."""
    factors = {
        value for lift in lifts for entry in lift.tensors for scale in entry.scales for value in scale.values if value
    }
    if any(entry.adds for lift in lifts for entry in lift.tensors):
        return ROUNDED
    return ROUNDED if any(math.frexp(value)[0] != 0.5 for value in factors) else TOLERANCE


def _stirred(program: Program, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a program with noise on its parameters; tied ones stay one object."""
    made: dict[int, torch.Tensor] = {}
    for number, tensor in enumerate(program.tensors.values()):
        if id(tensor) not in made:
            stir = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            made[id(tensor)] = defer(_noisy(tensor, seed + number), tensor) if stir else tensor
    return {name: made[id(tensor)] for name, tensor in program.tensors.items()}


def _noisy(tensor: torch.Tensor, seed: int) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).mul_(_STIR)
        value = values(tensor).detach()
        return value + noise.to(value)

    return make
