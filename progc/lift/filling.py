"""What padded units of a tensor start with: zero, one, or the mean of the old units (docs/growth.md 1.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from progc.ir.deferred import values
from progc.lift.index_map import IndexMap
from progc.lift.shares import along

How = Literal["zero", "one", "mean"]


@dataclasses.dataclass(frozen=True)
class Fill:
    """How the fresh units of one axis are filled along `dim`.

    Attributes:
        dim: the tensor dim.
        how: `zero`, `one`, or `mean`: the mean of the old units that agree with it in every other factor of the dim.
        over: the growth of that axis alone within the dim; other factors at their new size.
        weights: for `mean`, names of tensors (before growth) with one entry per old unit: each old unit counts times
            its entries. Names and not numbers, so that averaged copies of the weights use their own.
    """

    dim: int
    how: How
    over: IndexMap
    weights: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        data: dict[str, Any] = {"dim": self.dim, "how": self.how, "over": self.over.to_json()}
        return data | ({"weights": list(self.weights)} if self.weights else {})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Fill:
        """Reads what `to_json` wrote."""
        return Fill(data["dim"], data["how"], IndexMap.from_json(data["over"]), tuple(data.get("weights", ())))


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
