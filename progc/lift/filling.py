"""What padded units of a tensor start with: zero, one, or the mean of the old units (docs/growth.md 1.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from progc.ir.deferred import values
from progc.lift.entry import Fill
from progc.lift.shares import along


def fill_padded(value: torch.Tensor, fills: Sequence[Fill], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`value`, grown, with its padded units filled in.

    Args:
        tensors: the tensors before growth, for weights.
    """
    for fill in sorted(fills, key=lambda fill: fill.how == "zero"):  # a zero wins where two axes meet
        fresh = along(fill.over.fresh(), fill.dim, value)
        if fill.how == "mean":
            new = _mean(value, fill, tensors)
        else:
            new = torch.full((), float(fill.how == "one"), dtype=value.dtype)
        value = torch.where(fresh, new, value)
    return value


def _mean(value: torch.Tensor, fill: Fill, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Means over the old units, in float64, given to every unit of their group."""
    group, unit = fill.over.groups()
    count = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    old = (~fill.over.fresh()).double()
    count.index_add_(0, group, old)
    for name in fill.weights:
        entries = values(tensors[name]).detach().cpu().double().reshape(-1)
        old = old * entries[unit % len(entries)]
    shape = list(value.shape)
    shape[fill.dim] = len(count)
    total = torch.zeros(shape, dtype=torch.float64)
    total.index_add_(fill.dim, group, value.double() * along(old, fill.dim, value))
    return (total / along(count, fill.dim, value)).index_select(fill.dim, group).to(value.dtype)
