"""Deferred tensors: shape, dtype and device now, values when they are asked for, one tensor at a time.

A deferred tensor is a meta tensor that remembers how it is made. Analysis, graphs and the verifier read shapes only
and take it as it is; whoever needs values calls `values`, uses them and lets them go. So a network is grown, written
and checked while no more than one of its large tensors exists.

Derivatives of a deferred tensor (`detach`, arithmetic) are plain meta tensors: reading them fails, it never gives
something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

_MARK = "_progc_recipe"


@dataclasses.dataclass(frozen=True)
class _Recipe:
    make: Callable[[], torch.Tensor]
    device: torch.device


def defer(make: Callable[[], torch.Tensor], like: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
    """A deferred tensor.

    Args:
        make: gives the values, of the shape promised here; called each time they are asked for.
        like: gives dtype and device, and whether it is a parameter; may be deferred.
        shape: its shape; that of `like` (with its strides) if left out.
    """
    kept = shape is None or tuple(shape) == tuple(like.shape)
    empty = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta") if kept else None
    if empty is None:
        assert shape is not None
        empty = torch.empty(tuple(shape), dtype=like.dtype, device="meta")
    if isinstance(like, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=like.requires_grad)
    setattr(empty, _MARK, _Recipe(make, device_of(like)))
    return empty


def is_deferred(tensor: torch.Tensor) -> bool:
    """Whether `values` has to make it."""
    return hasattr(tensor, _MARK)


def values(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or what a deferred one stands for, made anew; the caller decides how long it lives."""
    recipe = getattr(tensor, _MARK, None)
    if recipe is None:
        return tensor
    made: torch.Tensor = recipe.make()
    assert made.shape == tensor.shape and made.dtype == tensor.dtype, "a deferred tensor is not what it promised"
    if isinstance(tensor, nn.Parameter) and not isinstance(made, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


def device_of(tensor: torch.Tensor) -> torch.device:
    """Where the tensor's values are, or will be."""
    recipe = getattr(tensor, _MARK, None)
    device: torch.device = tensor.device if recipe is None else recipe.device
    return device


def all_deferred(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The floating ones of these tensors deferred; names of one memory become names of one object."""
    made: dict[object, torch.Tensor] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point() and not tensor.is_meta and identity(tensor) not in made:
            made[identity(tensor)] = defer(_given(tensor), tensor)
    return {name: made.get(identity(tensor), tensor) for name, tensor in tensors.items()}


def all_values(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with their values; names of one object stay names of one object."""
    made: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in made:
            made[id(tensor)] = values(tensor)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def identity(tensor: torch.Tensor) -> object:
    """Equal for tensors that are the same memory, as `state_dict` gives tied parameters: views of their own."""
    if tensor.numel() == 0 or tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _given(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor
