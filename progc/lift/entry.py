"""Records of a lift: how one tensor of the new program is made from one of the old. Plain data.

Tensors that a growth makes out of nothing: a stage embedding has no predecessor to be lifted from.
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
class Eye:
    """A weight that passes its input on.

    Row r holds a single 1, at column `offset + r` (r modulo the columns of a group) and at position `taps` of the
    other dims, the kernel.
    """

    rows: int
    columns: int
    offset: int = 0
    taps: tuple[int, ...] = ()

    def like(self, source: torch.Tensor) -> torch.Tensor:
        """The weight in the shape, dtype and place of `source`."""
        weight = torch.zeros_like(source)
        matrix = weight.movedim((self.rows, self.columns), (0, 1))
        for tap in reversed(self.taps):
            matrix = matrix.select(-1, tap)
        rows = torch.arange(matrix.shape[0], device=source.device)
        matrix[rows, rows % matrix.shape[1] + self.offset] = 1
        return weight


@dataclasses.dataclass(frozen=True)
class Add:
    """Add row `row` of the tensor `table` (by its name before) along `dim`, alike everywhere else."""

    table: str
    row: int
    dim: int


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
        eye: a unit matrix that replaces them.
        fills: what padded units start with.
        adds: rows of other tensors that are added in the end; dims do not grow then.
        average: the source's values are those of an averaged copy of the weights, where one is at hand.
        resample: how its values over positions become those of another input size; nothing else is done then.
        storage: empty for growth. A tensor that shrinks is a view of its source (`share`, where its units allow one) or
            has memory of its own (`copy`): progc/lift/selection.py.
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
        """True if nothing is done to the source, except drawing it anew where `init` says so."""
        replaced = self.fill is not None or self.eye is not None or self.resample is not None
        moved = self.scales or self.fills or self.adds or any(self.dims) or self.storage == "copy"
        return not (self.fresh or replaced or moved)

    @property
    def steps(self) -> tuple[TensorLift, ...]:
        """What is done one after the other: units are chosen first, the rest is done to what they hold."""
        if not self.storage:
            return (self,)
        chosen = TensorLift(self.name, self.source, self.dims, scales=self.scales, storage=self.storage)
        rest = dataclasses.replace(self, dims=(), scales=(), storage="")
        return (chosen,) if rest.plain else (chosen, rest)


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


@dataclasses.dataclass(frozen=True)
class Made:
    """A parameter that was not there before.

    Attributes:
        name: its name after growth.
        shape: its shape.
        std: standard deviation of normal draws; 0 for zeros.
        dtype: of torch, without the prefix: `float32`.
    """

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    dtype: str = "float32"

    def draw(self, seed: int, device: torch.device | str = "cpu") -> nn.Parameter:
        """The parameter; every name has a random stream of its own, the same on every device."""
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
    """Seed of the random stream of one tensor."""
    return seed * 0x9E3779B1 + zlib.crc32(name.encode()) & 0x7FFFFFFFFFFFFFFF
