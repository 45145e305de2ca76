"""The arithmetic of a lift: shares that add up exactly, and initial values of fresh and padded units.

Padded units start with zero, one, or the mean of the old units (docs/growth.md 1.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from progc.ir.deferred import values
from progc.lift.entry import Fill
from progc.lift.index_map import IndexMap

if TYPE_CHECKING:
    from progc.lift.entry import Split, TensorLift

_PIECE = 1 << 20
"""Elements that are processed at a time."""

_MANTISSA = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def divide(
    value: torch.Tensor, index_map: IndexMap, split: Split, noise: float, generator: torch.Generator
) -> torch.Tensor:
    """Divides `value` (already gathered) among the copies along `split.dim`; exact in the dtype of `value`."""
    over = split.over if split.over is not None else index_map
    if over.unchanged:
        return value
    index, counts, fresh = over.index(), over.counts(), over.fresh()
    active = (counts > 1) & ~fresh
    if split.where is not None:
        active &= torch.tensor(split.where)[index_map.index()]
    if not bool(active.any()):
        return value
    old = ~fresh if bool(fresh.any()) else None
    groups = _Groups(split.dim, index, active, 1.0 / counts.double(), _is_last(index, active), old)
    zero_size = spread_of(value)
    # In pieces, so that there are no several float64 copies of a large tensor at a time.
    across = (value.dim() - 1 if split.dim == 0 else 0) if value.dim() > 1 else None
    if across is None:
        return _share(value, groups, noise, zero_size, generator)
    step = max(1, _PIECE * value.shape[across] // max(value.numel(), 1))
    pieces = [_share(piece, groups, noise, zero_size, generator) for piece in value.split(step, across)]
    return torch.cat(pieces, across)


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Which units along `dim` are copies of one another: vectors over the grown dim."""

    dim: int
    index: torch.Tensor
    active: torch.Tensor
    share: torch.Tensor
    last: torch.Tensor
    old: torch.Tensor | None


def _share(
    value: torch.Tensor, groups: _Groups, noise: float, zero_size: float, generator: torch.Generator
) -> torch.Tensor:
    dim, index = groups.dim, groups.index
    share, on = along(groups.share, dim, value), along(groups.active, dim, value)
    spread = torch.randn(value.shape, generator=generator, dtype=torch.float32).clamp_(-2, 2).mul_(noise)
    spread = spread.clamp_(-1, 1).double()  # otherwise a share could exceed 1 and lose its last bit
    spread -= group_sum(spread if groups.old is None else spread * along(groups.old, dim, value), dim, index) * share
    # A zero weight (a silenced branch) gets shares around zero too; otherwise its copies would stay equal.
    wide = value.double()
    size = torch.where(wide == 0, zero_size, wide)
    # In units of its last bit, a weight is an integer, and so are its parts: int64 adds them exactly.
    least = torch.finfo(value.dtype).smallest_normal * 2.0 ** (1 - _MANTISSA[value.dtype])
    unit = torch.ldexp(torch.ones_like(wide), torch.frexp(size).exponent - _MANTISSA[value.dtype]).clamp_(min=least)
    wide = wide / unit
    parts = spread.mul_(size.div_(unit)).add_(wide).mul_(share).round_().long()
    # The rounding error goes to the last copy of each source, so that the sum is exactly the source.
    rest = wide.long() - group_sum(torch.where(on, parts, 0), dim, index)
    parts += torch.where(along(groups.last, dim, value), rest, 0)
    return torch.where(on & value.isfinite(), unit.mul_(parts).to(value.dtype), value)


def group_sum(value: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Sums over all units with the same old unit; returns the sum for each of them."""
    shape = list(value.shape)
    shape[dim] = int(index.max()) + 1
    total = torch.zeros(shape, dtype=value.dtype).index_add_(dim, index, value)
    return total.index_select(dim, index)


def _is_last(index: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    last: dict[int, int] = {}
    for position, (source, on) in enumerate(zip(index.tolist(), active.tolist(), strict=True)):
        if on:
            last[source] = position
    flags = torch.zeros(len(index), dtype=torch.bool)
    flags[list(last.values())] = True
    return flags


def fill_fresh(
    value: torch.Tensor, source: torch.Tensor, entry: TensorLift, generator: torch.Generator
) -> torch.Tensor:
    """Fills fresh units with random rows, and with zero columns where an old row would read a fresh unit."""
    rows = columns = None
    contracted = {split.dim: split.over or entry.dims[split.dim] for split in entry.splits if split.where is None}
    gain = 1.0
    for dim, index_map in enumerate(entry.dims):
        if index_map is None or not bool(index_map.fresh().any()):
            continue
        fresh, over = index_map.fresh(), contracted.get(dim)
        if over is not None:
            columns = _either(columns, along(over.fresh(), dim, value))
            gain *= (over.old / over.new) ** 0.5
            fresh = fresh & ~over.fresh()
        if bool(fresh.any()):
            rows = _either(rows, along(fresh, dim, value))
    if rows is None and columns is None:
        return value
    if columns is not None and entry.init != "random":
        value = torch.where(columns, torch.zeros((), dtype=value.dtype), value)
    drawn = rows if entry.init != "random" else _either(rows, columns)
    if drawn is not None and value.dim() > 1:
        noise = normal(value.shape, value, generator) * (spread_of(source) * gain)
        value = torch.where(drawn, noise, value)
    return value


def _either(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a | b


def spread_of(source: torch.Tensor) -> float:
    """Returns the standard deviation of a tensor's values; 0.02 if they are constant or not finite."""
    spread = float(source.detach().float().std()) if source.numel() > 1 else 0.0
    if not math.isfinite(spread):  # squares, or values, beyond the range of f32
        wide = source.detach().double()
        largest = float(wide.abs().max())
        spread = float((wide / largest).std()) * largest
    return spread if 0 < spread < math.inf else 0.02


def normal(shape: torch.Size, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draws from N(0, 1) in float32 on the CPU; returns the values in the dtype of `like`."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(like.dtype)


def along(vector: torch.Tensor, dim: int, like: torch.Tensor) -> torch.Tensor:
    """Returns a vector as a view that broadcasts along `dim` of `like`."""
    shape = [1] * like.dim()
    if shape:  # a scalar parameter (a residual gate) counts as one unit
        shape[dim] = -1
    return vector.reshape(shape)


def fill_padded(value: torch.Tensor, fills: Sequence[Fill], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns a grown tensor with its padded units filled.

    Args:
        value: the grown tensor.
        fills: the initial values of padded units.
        tensors: the tensors before growth, for the weights of means.
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
    """Means over the old units, in float64, for every unit of their group."""
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
