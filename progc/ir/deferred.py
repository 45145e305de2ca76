"""Deferred tensors: shape, dtype and device are known now, values are computed on request, one tensor at a time.

A deferred tensor is a meta tensor with a function that computes its values. Analysis, graphs and the verifier read
shapes only and need no values. Code that needs them calls `values`, uses the result and drops it. So a network is
grown, written and checked with at most one of its large tensors in memory.

Results of operations on a deferred tensor (`detach`, arithmetic) are plain meta tensors: reading them fails.
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
    """Returns a deferred tensor.

    Args:
        make: computes the values, in the shape and dtype given here; called on every request.
        like: a tensor of the same dtype and device; the result is a parameter if it is one. May be deferred.
        shape: the shape; by default that of `like`, with its strides.
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
    """Whether a tensor is deferred."""
    return hasattr(tensor, _MARK)


def values(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor itself or, if it is deferred, its values, computed again on every call."""
    recipe = getattr(tensor, _MARK, None)
    if recipe is None:
        return tensor
    made: torch.Tensor = recipe.make()
    assert made.shape == tensor.shape and made.dtype == tensor.dtype, (
        "the values of a deferred tensor have another shape or dtype"
    )
    if isinstance(tensor, nn.Parameter) and not isinstance(made, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


def device_of(tensor: torch.Tensor) -> torch.device:
    """Returns the device of the tensor's values; for a deferred tensor, the device that they will be on."""
    recipe = getattr(tensor, _MARK, None)
    device: torch.device = tensor.device if recipe is None else recipe.device
    return device


def all_deferred(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors, floating-point ones deferred; names that share memory become one object."""
    made: dict[object, torch.Tensor] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point() and not tensor.is_meta and identity(tensor) not in made:
            made[identity(tensor)] = defer(_given(tensor), tensor)
    return {name: made.get(identity(tensor), tensor) for name, tensor in tensors.items()}


def all_values(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors with their values; names of one object stay names of one object."""
    made: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in made:
            made[id(tensor)] = values(tensor)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def identity(tensor: torch.Tensor) -> object:
    """Returns a key, equal for tensors with the same memory and layout (tied ones in a `state_dict`)."""
    if tensor.numel() == 0 or tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _given(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor
