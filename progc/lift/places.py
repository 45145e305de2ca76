"""Where the tensors of a sub-network belong in the full program: their indices, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from progc.errors import InputError
from progc.ir.deferred import identity
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift


def kept(lift: Lift, name: str) -> tuple[str, tuple[torch.Tensor | None, ...]]:
    """The places that a tensor comes from: of a sub-network in the full one, of a grown network in the small one.

    Args:
        lift: of `shrink`, or of any growth.
        name: the tensor after the step; one that the lift does not mention came from itself.

    Returns:
        The name before the step, and per dim int64 indices `[size after]` into the size before; None for a dim that is
        as it was; an empty tuple where no dim changed.
    """
    entry = next((entry for entry in lift.tensors if entry.name == name), None)
    if entry is None:
        return name, ()
    return entry.source, tuple(None if m is None or m.unchanged else m.index() for m in entry.dims)


def written_back(
    lift: Lift, small: Mapping[str, torch.Tensor], full: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The full tensors with those of the sub-network put into their places; everything else stays.

    What shares storage is there already. What was copied (storage=copy, or units that no view can hold) is written
    here, divided by the factor that fitted it to its fan-in. What was not only cut down, such as a table resampled for
    another input size, has no place in the full tensor: that stays.

    Args:
        lift: of the pass `shrink`.
        small: every name of the sub-network: the lift's own result, or those tensors after training.
        full: every name of the full program. No tensor of it is written to.

    Returns:
        Every name of the full program; tensors that the sub-network does not hold, or shares, are the same objects.

    Raises:
        InputError: a tensor is missing or does not have the shape that the lift gave it.
    """
    result = dict(full)
    made: dict[object, torch.Tensor] = {}
    entries = {entry.source: entry for entry in lift.tensors}
    gone = lift.removed | {entry.name for entry in lift.tensors}
    for name, tensor in full.items():
        if name in gone and name not in entries:
            continue  # left out; the name may be that of another tensor now
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
        raise InputError(f"written_back: {entry.name} has {list(small.shape)}; the lift made {sizes} of it")
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
