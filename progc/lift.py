"""The lift: what turns the tensors of a program into those of the grown one.

One `Lift` grows parameters, buffers, EMA copies (`apply`) and optimizer moments (`moments.py`). It is data:
JSON in, JSON out, independent of any graph, and deterministic (every tensor has its own random stream,
derived from the seed and its name).

The mathematics is docs/growth.md section 0.1: a producer gathers rows; a consumer gathers columns and divides
them among the copies of each source. The shares differ per output row and copy (zero-sum noise), else copies
would stay equal under Adam for ever (docs/growth.md 1.2). Shares are rounded so that the copies of one weight sum
to it *exactly* in the tensor's own dtype: growth adds no rounding error of its own.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from progc.index_map import IndexMap

NOISE = 0.3
"""Default spread of the shares, relative to the equal share (docs/growth.md 1.2 item 3)."""

_PIECE = 1 << 20
"""Elements that are worked on at a time."""

_MANTISSA = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Multiply by `values` (one per *old* unit) along `dim`. Factor 0 silences a branch."""

    dim: int
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Divide each value along `dim` among its copies.

    Attributes:
        dim: the dim that is contracted downstream.
        where: one flag per old unit: which units take part; None for all.
        over: the growth of the contracted factors alone (other factors of the dim at their new size), if the dim
            holds others that grow too; None if all of the dim is contracted.
    """

    dim: int
    where: tuple[bool, ...] | None = None
    over: IndexMap | None = None


@dataclasses.dataclass(frozen=True)
class TensorLift:
    """How one tensor of the grown program is made.

    Attributes:
        name: its name after growth.
        source: the tensor it is made from, by its name before growth.
        dims: one index map per dim; None for a dim that does not change; empty if none does.
        splits: dims along which the tensor contracts copies.
        scales: factors along dims, applied to the source before anything else.
        fresh: True for a tensor of an inserted block: optimizer moments start at m = 0.
        init: `copy`, `zero` or `random`; with `random` the fresh columns of consumers are random too, and a tensor
            without growing dims is drawn anew (growth is then not lossless).
        fill: a constant that replaces the source's values.
    """

    name: str
    source: str
    dims: tuple[IndexMap | None, ...] = ()
    splits: tuple[Split, ...] = ()
    scales: tuple[Scale, ...] = ()
    fresh: bool = False
    init: str = "copy"
    fill: float | None = None


@dataclasses.dataclass(frozen=True)
class Lift:
    """Tensor lifts of one growth step. Tensors that no entry mentions are carried over as they are."""

    tensors: tuple[TensorLift, ...]
    seed: int = 0
    noise: float = NOISE
    removed: frozenset[str] = frozenset()

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Grows a set of tensors: a program's own, or an EMA copy of them.

        Args:
            tensors: every name before growth; names that share one tensor's memory stay tied.

        Returns:
            Every name after growth, in a stable order; tensors that do not change are the same objects.
        """
        entries = {entry.name: entry for entry in self.tensors}
        grown: dict[str, torch.Tensor] = {}
        made: dict[tuple[object, TensorLift], torch.Tensor] = {}
        for name, tensor in tensors.items():
            if name not in entries and name not in self.removed:
                grown[name] = tensor
        for name, entry in entries.items():
            source = tensors[entry.source]
            # Tied names have equal lifts of one memory: they must come out as one object again.
            key = (_identity(source), dataclasses.replace(entry, name="", source=""))
            if entry.fresh or key not in made:
                made[key] = self._grow(source, entry)
            grown[name] = made[key]
        return grown

    def moments(self, state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Grows optimizer state by parameter name (Adam's m and v, momentum): see `progc.moments.grow_moments`."""
        from progc.moments import grow_moments

        return grow_moments(self, state)

    def _grow(self, source: torch.Tensor, entry: TensorLift) -> torch.Tensor:
        if not entry.fresh and not entry.scales and entry.fill is None and not any(entry.dims):
            return source if entry.init != "random" else _keep_type(source, self._draw(source, entry))
        generator = self._generator(entry.name)
        value = source.detach()
        if entry.fill is not None:
            value = torch.full_like(value, entry.fill)
        for scale in entry.scales:
            value = value * _along(torch.tensor(scale.values, dtype=torch.float64), scale.dim, value).to(value.dtype)
        if entry.init == "random" and not any(entry.dims):
            value = self._draw(value, entry)
        contracted = {split.dim for split in entry.splits}
        # Producers' dims first, so that every output row gets shares of its own; then each contracted dim is
        # gathered and divided in one go, while its copies are still equal: only then can their sum be exact.
        for dim, index_map in sorted(enumerate(entry.dims), key=lambda item: item[0] in contracted):
            if index_map is not None and not index_map.unchanged:
                value = value.index_select(dim, index_map.index().to(value.device))
                for split in entry.splits:
                    if split.dim == dim and value.is_floating_point():
                        value = _split(value, index_map, split, self.noise, generator)
        if value.is_floating_point():
            value = _fill_fresh(value, source, entry, generator)
        return _keep_type(source, value.clone() if value.data_ptr() == source.data_ptr() else value)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 0x9E3779B1 + zlib.crc32(name.encode()) & 0x7FFFFFFFFFFFFFFF)

    def _draw(self, source: torch.Tensor, entry: TensorLift) -> torch.Tensor:
        """A tensor like `source` drawn anew: matrices with the source's spread, vectors as they are."""
        if not source.is_floating_point() or source.dim() < 2:
            return source.detach().clone()
        return _normal(source.shape, source, self._generator(entry.name)) * _spread(source)

    def to_json(self) -> dict[str, Any]:
        """Plain data with runs instead of long lists; `from_json` is the inverse."""
        return {
            "seed": self.seed,
            "noise": self.noise,
            "removed": sorted(self.removed),
            "tensors": [_entry_to_json(entry) for entry in self.tensors],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Lift:
        """Reads what `to_json` wrote."""
        return Lift(
            tuple(_entry_from_json(entry) for entry in data["tensors"]),
            data["seed"],
            data["noise"],
            frozenset(data["removed"]),
        )


def _identity(tensor: torch.Tensor) -> object:
    """Equal for tensors that are the same memory, as `state_dict` gives tied parameters: views of their own."""
    if tensor.numel() == 0 or tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _split(
    value: torch.Tensor, index_map: IndexMap, split: Split, noise: float, generator: torch.Generator
) -> torch.Tensor:
    """Divides `value` (already gathered) among copies along `split.dim`; exact in `value`'s dtype."""
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
    zero_size = _spread(value)
    # In pieces: a large tensor never has several float64 copies at a time.
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
    share, on = _along(groups.share, dim, value), _along(groups.active, dim, value)
    spread = torch.randn(value.shape, generator=generator, dtype=torch.float32).clamp_(-2, 2).mul_(noise)
    spread = spread.clamp_(-1, 1).double()  # beyond, a share could exceed 1, and its last bit would be lost
    spread -= _group_sum(spread if groups.old is None else spread * _along(groups.old, dim, value), dim, index) * share
    # A weight that is zero (a silenced branch) still gets shares around zero, else its copies would never part.
    wide = value.double()
    size = torch.where(wide == 0, zero_size, wide)
    # Counted in its own last bit a weight is a whole number, and so are its parts: int64 adds them exactly.
    least = torch.finfo(value.dtype).smallest_normal * 2.0 ** (1 - _MANTISSA[value.dtype])
    unit = torch.ldexp(torch.ones_like(wide), torch.frexp(size).exponent - _MANTISSA[value.dtype]).clamp_(min=least)
    wide = wide / unit
    parts = spread.mul_(size.div_(unit)).add_(wide).mul_(share).round_().long()
    # What rounding left over goes to the last copy of each source, so that the sum is the source to the bit.
    rest = wide.long() - _group_sum(torch.where(on, parts, 0), dim, index)
    parts += torch.where(_along(groups.last, dim, value), rest, 0)
    return torch.where(on & value.isfinite(), unit.mul_(parts).to(value.dtype), value)


def _group_sum(value: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Sum over all units with the same old unit, given back to each of them."""
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


def _fill_fresh(
    value: torch.Tensor, source: torch.Tensor, entry: TensorLift, generator: torch.Generator
) -> torch.Tensor:
    """Random rows for fresh units; zero columns where an old row would read a fresh unit."""
    rows = columns = None
    contracted = {split.dim: split.over or entry.dims[split.dim] for split in entry.splits if split.where is None}
    gain = 1.0
    for dim, index_map in enumerate(entry.dims):
        if index_map is None or not bool(index_map.fresh().any()):
            continue
        fresh, over = index_map.fresh(), contracted.get(dim)
        if over is not None:
            columns = _either(columns, _along(over.fresh(), dim, value))
            gain *= (over.old / over.new) ** 0.5
            fresh = fresh & ~over.fresh()
        if bool(fresh.any()):
            rows = _either(rows, _along(fresh, dim, value))
    if rows is None and columns is None:
        return value
    if columns is not None and entry.init != "random":
        value = torch.where(columns, torch.zeros((), dtype=value.dtype), value)
    drawn = rows if entry.init != "random" else _either(rows, columns)
    if drawn is not None and value.dim() > 1:
        noise = _normal(value.shape, value, generator) * (_spread(source) * gain)
        value = torch.where(drawn, noise, value)
    return value


def _either(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a | b


def _spread(source: torch.Tensor) -> float:
    spread = float(source.detach().float().std()) if source.numel() > 1 else 0.0
    if not math.isfinite(spread):  # squares, or values, beyond the range of f32
        wide = source.detach().double()
        largest = float(wide.abs().max())
        spread = float((wide / largest).std()) * largest
    return spread if 0 < spread < math.inf else 0.02


def _normal(shape: torch.Size, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(like.dtype)


def _along(vector: torch.Tensor, dim: int, like: torch.Tensor) -> torch.Tensor:
    shape = [1] * like.dim()
    if shape:  # a scalar parameter (a residual gate) counts as one unit
        shape[dim] = -1
    return vector.reshape(shape)


def _keep_type(source: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if isinstance(source, nn.Parameter):
        return nn.Parameter(value, requires_grad=source.requires_grad)
    return value


def _entry_to_json(entry: TensorLift) -> dict[str, Any]:
    data: dict[str, Any] = {"name": entry.name}
    if entry.source != entry.name:
        data["source"] = entry.source
    if any(entry.dims):
        data["dims"] = [None if index_map is None else index_map.to_json() for index_map in entry.dims]
    if entry.splits:
        data["splits"] = [
            {"dim": split.dim}
            | ({"where": _runs(split.where)} if split.where is not None else {})
            | ({"over": split.over.to_json()} if split.over is not None else {})
            for split in entry.splits
        ]
    if entry.scales:
        data["scales"] = [{"dim": scale.dim, "values": _runs(scale.values)} for scale in entry.scales]
    for key, default in (("fresh", False), ("init", "copy"), ("fill", None)):
        if getattr(entry, key) != default:
            data[key] = getattr(entry, key)
    return data


def _entry_from_json(data: Mapping[str, Any]) -> TensorLift:
    dims = tuple(None if item is None else IndexMap.from_json(item) for item in data.get("dims", ()))
    splits = tuple(
        Split(
            item["dim"],
            tuple(bool(v) for v in _unruns(item["where"])) if "where" in item else None,
            IndexMap.from_json(item["over"]) if "over" in item else None,
        )
        for item in data.get("splits", ())
    )
    scales = tuple(Scale(item["dim"], tuple(_unruns(item["values"]))) for item in data.get("scales", ()))
    return TensorLift(
        name=data["name"],
        source=data.get("source", data["name"]),
        dims=dims,
        splits=splits,
        scales=scales,
        fresh=data.get("fresh", False),
        init=data.get("init", "copy"),
        fill=data.get("fill"),
    )


def _runs(values: tuple[Any, ...]) -> list[list[Any]]:
    """`[[value, length], ...]`: vectors of scales are long and dull."""
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _unruns(runs: list[list[Any]]) -> list[Any]:
    return [value for value, length in runs for _ in range(length)]
