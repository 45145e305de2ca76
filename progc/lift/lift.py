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
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from progc.ir.deferred import defer, device_of, identity, is_deferred, values
from progc.lift.filling import Fill, fill_padded
from progc.lift.index_map import IndexMap
from progc.lift.made import Made, stream
from progc.lift.resampling import Resample
from progc.lift.selection import chosen
from progc.lift.shares import along, divide, fill_fresh, normal, spread_of

NOISE = 0.3
"""Default spread of the shares, relative to the equal share (docs/growth.md 1.2 item 3)."""


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


@dataclasses.dataclass(frozen=True)
class Lift:
    """Tensor lifts of one growth step. Tensors that no entry mentions are carried over as they are.

    Attributes:
        tensors: one entry for every tensor that changes.
        seed: of noise, random weights and `made`.
        noise: spread of the shares among copies, relative to the equal share.
        removed: names that are gone.
        made: tensors without a predecessor.
    """

    tensors: tuple[TensorLift, ...]
    seed: int = 0
    noise: float = NOISE
    removed: frozenset[str] = frozenset()
    made: tuple[Made, ...] = ()

    def apply(
        self, tensors: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Grows a set of tensors: a program's own, or an EMA copy of them.

        Args:
            tensors: every name before growth; names that share one tensor's memory stay tied.
            average: an averaged copy of them, which entries with `average` read; without it they read `tensors`.

        Returns:
            Every name after growth, in a stable order; tensors that do not change are the same objects. What grows
            from a deferred tensor (progc/ir/deferred.py) is deferred too: made when its values are asked for.
        """
        entries = {entry.name: entry for entry in self.tensors}
        grown: dict[str, torch.Tensor] = {}
        made: dict[tuple[object, TensorLift], torch.Tensor] = {}
        for name, tensor in tensors.items():
            if name not in entries and name not in self.removed:
                grown[name] = tensor
        for name, entry in entries.items():
            source, given = tensors[entry.source], tensors
            averaged = entry.average and average is not None
            # Tied names have equal lifts of one memory: they must come out as one object again.
            key = (identity(source), dataclasses.replace(entry, name="", source="", average=averaged))
            if entry.fresh or key not in made:
                if averaged:
                    assert average is not None
                    source, given = _as(source, average[entry.source]), average
                later = is_deferred(source)
                made[key] = self._later(source, entry, given) if later else self._grow(source, entry, given)
            grown[name] = made[key]
        made_on = device_of(next(iter(tensors.values()))) if tensors else torch.device("cpu")
        return grown | {new.name: new.draw(self.seed, made_on) for new in self.made}

    def moments(self, state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Grows optimizer state by parameter name (Adam's m and v, momentum): see `progc.lift.moments.grow_moments`."""
        from progc.lift.moments import grow_moments

        return grow_moments(self, state)

    def _later(self, source: torch.Tensor, entry: TensorLift, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`_grow` for a deferred tensor: the shape now, the values when they are asked for."""
        if entry.plain and entry.init != "random":
            return source
        dims = entry.dims or (None,) * source.dim()
        if entry.resample is not None:
            return defer(lambda: self._grow(values(source), entry, tensors), source, entry.resample.shape)
        sizes = [size if m is None else m.new for size, m in zip(source.shape, dims, strict=True)]
        return defer(lambda: self._grow(values(source), entry, tensors), source, sizes)

    def _grow(self, source: torch.Tensor, entry: TensorLift, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if entry.plain:
            return source if entry.init != "random" else _keep_type(source, self._draw(source, entry))
        if entry.storage:
            units, *rest = entry.steps
            kept = _keep_type(source, chosen(source, units))
            return self._grow(kept, rest[0], tensors) if rest else kept
        if entry.resample is not None:
            return _keep_type(source, entry.resample.apply(source.detach()))
        generator = self._generator(entry.name)
        value = source.detach().cpu()  # random streams and shares are the same wherever the weights lie
        if entry.fill is not None:
            value = torch.full_like(value, entry.fill)
        if entry.eye is not None:
            value = entry.eye.like(value)
        for scale in entry.scales:
            value = value * along(torch.tensor(scale.values, dtype=torch.float64), scale.dim, value).to(value.dtype)
        if entry.init == "random" and not any(entry.dims):
            value = self._draw(value, entry)
        contracted = {split.dim for split in entry.splits}
        # Producers' dims first, so that every output row gets shares of its own; then each contracted dim is
        # gathered and divided in one go, while its copies are still equal: only then can their sum be exact.
        for dim, index_map in sorted(enumerate(entry.dims), key=lambda item: item[0] in contracted):
            if index_map is not None and not index_map.unchanged:
                value = value.index_select(dim, index_map.index())
                for split in entry.splits:
                    if split.dim == dim and value.is_floating_point():
                        value = divide(value, index_map, split, self.noise, generator)
        if value.is_floating_point():
            value = fill_fresh(value, source, entry, generator)
            value = fill_padded(value, entry.fills, tensors)
        for add in entry.adds:
            row = values(tensors[add.table]).detach().cpu()[add.row]
            value = value + along(row.to(value.dtype), add.dim, value)
        value = value.clone() if value.data_ptr() == source.data_ptr() else value.to(source.device)
        return _keep_type(source, value)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(stream(self.seed, name))

    def _draw(self, source: torch.Tensor, entry: TensorLift) -> torch.Tensor:
        """A tensor like `source` drawn anew: matrices with the source's spread, vectors as they are."""
        if not source.is_floating_point() or source.dim() < 2:
            return source.detach().clone()
        drawn = normal(source.shape, source, self._generator(entry.name)) * spread_of(source)
        return drawn.to(source.device)

    def to_json(self) -> dict[str, Any]:
        """Plain data with runs instead of long lists; `from_json` is the inverse."""
        return {
            "seed": self.seed,
            "noise": self.noise,
            "removed": sorted(self.removed),
            "tensors": [_entry_to_json(entry) for entry in self.tensors],
            **({"made": [new.to_json() for new in self.made]} if self.made else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Lift:
        """Reads what `to_json` wrote."""
        return Lift(
            tuple(_entry_from_json(entry) for entry in data["tensors"]),
            data["seed"],
            data["noise"],
            frozenset(data["removed"]),
            tuple(Made.from_json(item) for item in data.get("made", ())),
        )


def _as(own: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """A copy of the average as a tensor like `own`, deferred if one of them is."""

    def make() -> torch.Tensor:
        value = values(average).detach()
        return _keep_type(own, value.to(device_of(own), own.dtype, copy=True))

    return defer(make, own) if is_deferred(own) or is_deferred(average) else make()


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
    if entry.fills:
        data["fills"] = [fill.to_json() for fill in entry.fills]
    defaults = {"fresh": False, "init": "copy", "fill": None, "average": False, "storage": ""}
    for key, default in defaults.items():
        if getattr(entry, key) != default:
            data[key] = getattr(entry, key)
    if entry.eye is not None:
        data["eye"] = dataclasses.asdict(entry.eye) | {"taps": list(entry.eye.taps)}
    if entry.adds:
        data["adds"] = [dataclasses.asdict(add) for add in entry.adds]
    if entry.resample is not None:
        data["resample"] = entry.resample.to_json()
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
        eye=Eye(**{**data["eye"], "taps": tuple(data["eye"]["taps"])}) if "eye" in data else None,
        fills=tuple(Fill.from_json(item) for item in data.get("fills", ())),
        adds=tuple(Add(**item) for item in data.get("adds", ())),
        average=data.get("average", False),
        resample=Resample.from_json(data["resample"]) if "resample" in data else None,
        storage=data.get("storage", ""),
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
