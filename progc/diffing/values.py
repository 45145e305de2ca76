"""How far two tensors of one shape are apart."""

from __future__ import annotations

import math

import torch

from progc.ir.deferred import identity, values

_CHUNK = 1 << 22  # elements: differences are taken in float64, which shall not need a second copy of a large tensor


def distance(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """Largest absolute difference, None if the two are equal bit by bit.

    It is 0.0 where only signs of zeros or NaN patterns differ, and inf where one is not finite and the other is, or is
    something else. Tensors have one shape and one dtype; deferred ones are made here and let go.
    """
    if first is second:
        return None
    a, b = (values(tensor).detach() for tensor in (first, second))
    if not a.is_meta and not b.is_meta and identity(a) == identity(b):
        return None
    a, b = (tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1) for tensor in (a, b))
    if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return None
    return max(_largest(x, y) for x, y in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True))


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.to(wide), b.to(wide)
    gap = (x - y).abs()
    gap[(x == y) | (x.isnan() & y.isnan())] = 0.0
    largest = float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max())
    return largest
