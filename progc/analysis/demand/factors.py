"""Factor tensors: float64, with the shape of the value that they multiply, mostly expanded from a few elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_TOLERANCE = 1e-12


def narrow(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor | None:
    """Returns the tensor with size 1 along `dims` if it is constant there, else None."""
    for dim in dims:
        if tensor.shape[dim] > 1:
            first = tensor.narrow(dim, 0, 1)
            if tensor.stride(dim) != 0 and not same(tensor, first.expand_as(tensor)):
                return None
            tensor = first
    return tensor


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two factor tensors are equal up to rounding."""
    for dim in range(a.dim()):  # an expanded dim holds one value
        if a.shape == b.shape and a.shape[dim] > 1 and a.stride(dim) == b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    if a.dtype == torch.bool:
        return torch.equal(a, b)
    return bool(((a - b).abs() <= _TOLERANCE * b.abs()).all())


def carry(tensor: torch.Tensor, labels: Sequence[str], to: Sequence[str], shape: Sequence[int]) -> torch.Tensor | None:
    """Moves a tensor with labelled dims to other labelled dims; shared labels keep their values.

    Args:
        tensor: one dim per entry of `labels`; must be constant along labels that are missing from `to`.
        labels: labels of the dims of `tensor`.
        to: labels of the dims of the result.
        shape: sizes of the result; dims whose labels `tensor` does not have are expanded.

    Returns:
        The result, or None if the tensor varies along a dim that the result does not have.
    """
    reduced = narrow(tensor, [i for i, label in enumerate(labels) if label not in to])
    if reduced is None:
        return None
    kept = [i for i, label in enumerate(labels) if label in to]
    flat = reduced.permute([*kept, *(i for i in range(len(labels)) if i not in kept)])
    flat = flat.reshape([reduced.shape[i] for i in kept])
    order = {labels[i]: position for position, i in enumerate(kept)}
    flat = flat.permute([order[label] for label in to if label in order])
    for position, label in enumerate(to):
        if label not in order:
            flat = flat.unsqueeze(position)
    return flat.expand(tuple(shape))


def reduce_any(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Undoes the broadcast of a boolean mask: an element is true if any of its broadcast copies is true."""
    mask = mask.reshape((1,) * (len(shape) - mask.dim()) + tuple(mask.shape))
    while mask.dim() > len(shape):
        mask = mask.any(0)
    for dim, size in enumerate(shape):
        if size == 1 and mask.shape[dim] != 1:
            mask = mask.any(dim, keepdim=True)
    return mask


def as_scale(mask: torch.Tensor, factor: float) -> tuple[int, tuple[float, ...]] | None:
    """Returns a boolean mask over a parameter as `(dim, values)` of a `Scale`; None if one dim is not enough."""
    for dim in range(max(mask.dim(), 1)):
        reduced = narrow(mask, [other for other in range(mask.dim()) if other != dim])
        if reduced is not None:
            return dim, tuple(factor if on else 1.0 for on in reduced.reshape(-1).tolist())
    return None


def expanded(dim: int, values: Sequence[float], shape: Sequence[int]) -> torch.Tensor:
    """Returns the factor tensor of a `Scale` over a parameter of this shape."""
    view = [1] * len(shape)
    if shape:
        view[dim] = len(values)
    return torch.tensor(values, dtype=torch.float64).reshape(view).expand(tuple(shape))
