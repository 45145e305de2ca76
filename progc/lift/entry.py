"""The records of a lift, as plain data: how a tensor of the new program is made from one of the old program.

`Made` describes a tensor without a predecessor, such as a stage embedding.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from progc.lift.index_map import IndexMap
from progc.lift.resampling import Resample


@dataclasses.dataclass(frozen=True)
class Scale:
    """Multiplies by `values`, one per *old* unit, along `dim`. A factor of 0 silences a branch."""

    dim: int
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Divides each value along `dim` among its copies.

    Attributes:
        dim: the dim that is contracted downstream.
        where: one flag per old unit: whether it is divided; None for all.
        over: the growth of the contracted factors alone (other factors of the dim at their new size), if other factors
            of the dim grow too; None if the whole dim is contracted.
    """

    dim: int
    where: tuple[bool, ...] | None = None
    over: IndexMap | None = None


@dataclasses.dataclass(frozen=True)
class Eye:
    """An identity weight, which returns its input.

    Attributes:
        rows, columns: the dims of output and input units.
        offset: row r has a 1 at column `offset + r` (r modulo the columns of a group) and 0 elsewhere.
        taps: position of the 1 in the other dims, the kernel.
    """

    rows: int
    columns: int
    offset: int = 0
    taps: tuple[int, ...] = ()

    def like(self, source: torch.Tensor) -> torch.Tensor:
        """Returns the weight in the shape and dtype and on the device of `source`."""
        weight = torch.zeros_like(source)
        matrix = weight.movedim((self.rows, self.columns), (0, 1))
        for tap in reversed(self.taps):
            matrix = matrix.select(-1, tap)
        rows = torch.arange(matrix.shape[0], device=source.device)
        matrix[rows, rows % matrix.shape[1] + self.offset] = 1
        return weight


@dataclasses.dataclass(frozen=True)
class Add:
    """Adds row `row` of the tensor `table` (its name before growth) along `dim`, broadcast over the other dims."""

    table: str
    row: int
    dim: int


@dataclasses.dataclass(frozen=True)
class TensorLift:
    """How a tensor of the grown program is made.

    Attributes:
        name: the name after growth.
        source: the name, before growth, of the tensor it is made from.
        dims: one index map per dim; None for a dim that does not change; empty if no dim changes.
        splits: dims along which the tensor contracts copies.
        scales: factors along dims, applied to the source first.
        fresh: True for a tensor of an inserted block: optimizer moments start at m = 0.
        init: `copy`, `zero` or `random`. With `random`, fresh columns of consumers are random too, and a tensor
            without growing dims is drawn at random (growth is then not lossless).
        fill: a constant that replaces the source's values.
        eye: an identity weight that replaces them.
        fills: initial values of padded units.
        adds: rows of other tensors that are added last; dims do not grow then.
        average: whether the values come from an averaged copy (EMA) of the source, if one is available.
        resample: resampling of a tensor over positions for another input size; nothing else is done then.
        storage: empty for growth. A tensor that shrinks is a view of its source (`share`, if its units allow it) or a
            copy (`copy`).
    """

    name: str
    source: str
    dims: tuple[IndexMap | None, ...] = ()
    splits: tuple[Split, ...] = ()
    scales: tuple[Scale, ...] = ()
    fresh: bool = False
    init: str = "copy"
    fill: float | None = None
    eye: Eye | None = None
    fills: tuple[Fill, ...] = ()
    adds: tuple[Add, ...] = ()
    average: bool = False
    resample: Resample | None = None
    storage: str = ""

    @property
    def plain(self) -> bool:
        """Whether the source is taken unchanged, or only drawn at random (`init`)."""
        replaced = self.fill is not None or self.eye is not None or self.resample is not None
        moved = self.scales or self.fills or self.adds or any(self.dims) or self.storage == "copy"
        return not (self.fresh or replaced or moved)

    @property
    def steps(self) -> tuple[TensorLift, ...]:
        """The entry as successive steps: a tensor that shrinks first selects its units."""
        if not self.storage:
            return (self,)
        chosen = TensorLift(self.name, self.source, self.dims, scales=self.scales, storage=self.storage)
        rest = dataclasses.replace(self, dims=(), scales=(), storage="")
        return (chosen,) if rest.plain else (chosen, rest)


How = Literal["zero", "one", "mean"]


@dataclasses.dataclass(frozen=True)
class Fill:
    """Initial values of the fresh units of one axis along `dim`.

    Attributes:
        dim: the tensor dim.
        how: `zero`, `one`, or `mean`: the mean of the old units at the same position in all other factors of the dim.
        over: the growth of that axis alone within the dim; other factors at their new size.
        weights: for `mean`, names (before growth) of tensors with one entry per old unit, whose product weighs the
            units. These are names, not numbers, so that averaged copies use their own values.
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


@dataclasses.dataclass(frozen=True)
class Made:
    """A parameter without a predecessor.

    Attributes:
        name: the name after growth.
        shape: the shape.
        std: standard deviation of the normal distribution it is drawn from; 0 for zeros.
        dtype: name of the torch dtype: `float32`.
    """

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    dtype: str = "float32"

    def draw(self, seed: int, device: torch.device | str = "cpu") -> nn.Parameter:
        """Returns the parameter; the values depend on the seed and the name, not on the device."""
        generator = torch.Generator().manual_seed(stream(seed, self.name))
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.std
        return nn.Parameter(values.to(device, getattr(torch, self.dtype)))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return {"name": self.name, "shape": list(self.shape), "std": self.std, "dtype": self.dtype}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Made:
        """Reads what `to_json` wrote."""
        return Made(data["name"], tuple(data["shape"]), data["std"], data["dtype"])


def stream(seed: int, name: str) -> int:
    """Returns the seed of the random stream of one tensor."""
    return seed * 0x9E3779B1 + zlib.crc32(name.encode()) & 0x7FFFFFFFFFFFFFFF
