"""The lift: maps the tensors of a program to those of the grown or shrunk program.

One `Lift` maps parameters, buffers and EMA copies (`apply`) and optimizer moments (`moments.py`). It is plain data,
written and read as JSON, independent of any graph, and deterministic: the random stream of a tensor follows from the
seed and its name.

The mathematics is in docs/growth.md, section 0.1: a producer gathers rows; a consumer gathers columns and divides them
among the copies of each source. The shares differ per output row and copy by zero-sum noise, because equal copies would
stay equal under Adam (docs/growth.md 1.2). Shares are rounded so that the copies of a weight sum to it *exactly* in the
dtype of the tensor: growth adds no rounding error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from progc.errors import TargetError
from progc.ir.deferred import defer, device_of, identity, is_deferred, values
from progc.lift.entry import Add, Eye, Fill, Made, Scale, Split, TensorLift, stream
from progc.lift.index_map import IndexMap
from progc.lift.moments import grow_moments
from progc.lift.resampling import Resample
from progc.lift.shares import along, divide, fill_fresh, fill_padded, normal, spread_of

NOISE = 0.3
"""Default spread of the shares, relative to the equal share (docs/growth.md 1.2 item 3)."""

_OWN = {"name", "source"}


@dataclasses.dataclass(frozen=True)
class Lift:
    """The lift of one step. Tensors without an entry stay unchanged.

    Attributes:
        tensors: one entry for every tensor that changes.
        seed: seed of the noise, of random weights and of `made`.
        noise: spread of the shares among copies, relative to the equal share.
        removed: names that do not exist any more.
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
        """Maps a set of tensors: those of a program, or an EMA copy of them.

        Args:
            tensors: all tensors before the step; names that share the memory of one tensor stay tied.
            average: an averaged copy of them, which entries with `average` read; without it they read `tensors`.

        Returns:
            All tensors after the step, in a stable order; tensors that do not change are the same objects. Tensors
            made from deferred ones (progc/ir/deferred.py) are deferred too.
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
            # Tied names have equal entries and the same memory: they must become one object again.
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
        """Maps optimizer state by parameter name (Adam's m and v, momentum): see `progc.lift.moments.grow_moments`."""
        return grow_moments(self.tensors, self.removed, state)

    def _later(self, source: torch.Tensor, entry: TensorLift, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`_grow` for a deferred tensor: the shape now, the values on request."""
        if entry.plain and entry.init != "random":
            return source
        dims = entry.dims or (None,) * source.dim()
        if entry.resample is not None:
            return defer(lambda: self._grow(values(source), entry, tensors), source, entry.resample.shape)
        sizes = [size if m is None else m.new for size, m in zip(source.shape, dims, strict=True)]
        return defer(lambda: self._grow(values(source), entry, tensors), source, sizes)

    def _grow(self, source: torch.Tensor, entry: TensorLift, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if entry.plain:
            return source if entry.init != "random" else keep_type(source, self._draw(source, entry))
        if entry.storage:
            units, *rest = entry.steps
            kept = keep_type(source, chosen(source, units))
            return self._grow(kept, rest[0], tensors) if rest else kept
        if entry.resample is not None:
            return keep_type(source, entry.resample.apply(source.detach()))
        generator = self._generator(entry.name)
        value = source.detach().cpu()  # random streams and shares do not depend on the device
        if entry.fill is not None:
            value = torch.full_like(value, entry.fill)
        if entry.eye is not None:
            value = entry.eye.like(value)
        for scale in entry.scales:
            value = value * along(torch.tensor(scale.values, dtype=torch.float64), scale.dim, value).to(value.dtype)
        if entry.init == "random" and not any(entry.dims):
            value = self._draw(value, entry)
        contracted = {split.dim for split in entry.splits}
        # Producers' dims first, so that every output row gets different shares. Then each contracted dim is gathered
        # and divided at once, while its copies are still equal: only then can their sum be exact.
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
        return keep_type(source, value)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(stream(self.seed, name))

    def _draw(self, source: torch.Tensor, entry: TensorLift) -> torch.Tensor:
        """A random tensor like `source`: matrices with its standard deviation; vectors are copied."""
        if not source.is_floating_point() or source.dim() < 2:
            return source.detach().clone()
        drawn = normal(source.shape, source, self._generator(entry.name)) * spread_of(source)
        return drawn.to(source.device)

    def to_json(self) -> dict[str, Any]:
        """Returns plain data, with run lengths in place of long lists; `from_json` is the inverse."""
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
    """A copy of the average, as a parameter if `own` is one; deferred if one of them is."""

    def make() -> torch.Tensor:
        value = values(average).detach()
        return keep_type(own, value.to(device_of(own), own.dtype, copy=True))

    return defer(make, own) if is_deferred(own) or is_deferred(average) else make()


def keep_type(source: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Returns `value`, as a parameter if `source` is one."""
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
            | ({"where": to_runs(split.where)} if split.where is not None else {})
            | ({"over": split.over.to_json()} if split.over is not None else {})
            for split in entry.splits
        ]
    if entry.scales:
        data["scales"] = [{"dim": scale.dim, "values": to_runs(scale.values)} for scale in entry.scales]
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
            tuple(bool(v) for v in from_runs(item["where"])) if "where" in item else None,
            IndexMap.from_json(item["over"]) if "over" in item else None,
        )
        for item in data.get("splits", ())
    )
    scales = tuple(Scale(item["dim"], tuple(from_runs(item["values"]))) for item in data.get("scales", ()))
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


def to_runs(values: tuple[Any, ...]) -> list[list[Any]]:
    """Returns run lengths, `[[value, length], ...]`: vectors of scales are long and repetitive."""
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def from_runs(runs: list[list[Any]]) -> list[Any]:
    """Reads what `to_runs` wrote."""
    return [value for value, length in runs for _ in range(length)]


def composed(first: Lift, second: Lift) -> Lift:
    """Returns the lift that does `first` and then `second`.

    Raises:
        TargetError: both change a tensor in ways that one entry cannot describe.
    """
    known = {entry.name: entry for entry in first.tensors}
    entries = dict(known)
    for entry in second.tensors:
        before = known.get(entry.source)
        if entry.source != entry.name:
            entries.pop(entry.source, None)
        entries[entry.name] = entry if before is None else _joined(before, entry)
    for name in second.removed:
        entries.pop(name, None)
    return dataclasses.replace(
        second,
        tensors=tuple(entries.values()),
        removed=first.removed | (second.removed - known.keys()),
        made=(*first.made, *second.made),
    )


def _joined(before: TensorLift, after: TensorLift) -> TensorLift:
    """One entry for both: each field, and each dim, may be changed by one of them only."""
    changes: dict[str, object] = {"name": after.name, "source": before.source}
    for field in dataclasses.fields(TensorLift):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if field.name in _OWN or one == field.default or one == other:
            continue
        if other == field.default:
            changes[field.name] = one
        elif field.name == "dims" and not any(a and b for a, b in zip(one, other, strict=True)):
            changes["dims"] = tuple(a or b for a, b in zip(one, other, strict=True))
        else:
            raise TargetError(
                f"shrink: both the units and the resolution of {before.source} change; apply two passes, one after the "
                "other: shrink{...},grow-resolution{...}"
            )
    return dataclasses.replace(after, **changes)  # type: ignore[arg-type]


def chosen(source: torch.Tensor, entry: TensorLift) -> torch.Tensor:
    """Returns the values of a tensor that shrinks, as a plain tensor without a gradient.

    Units at even distances along every dim can be a view: training the small tensor then trains the same entries of the
    large one (elastic supernets). Other units have to be copied.

    Args:
        source: the full tensor.
        entry: an entry with `storage` `share` or `copy`; only `copy` may have scales, one value per unit of `source`.

    Returns:
        A view of `source` for `share` if the units allow it, else a copy.
    """
    assert entry.storage in ("share", "copy") and not (entry.scales and entry.storage == "share")
    value = source.detach()
    steps = strides(entry.dims)
    if steps is not None and entry.storage == "share":
        for dim, step in enumerate(steps):
            if step is not None:
                value = value[(slice(None),) * dim + (step,)]
        return value
    for dim, index_map in enumerate(entry.dims):
        if index_map is not None:
            value = value.index_select(dim, index_map.index().to(value.device))
    for scale in entry.scales:
        index_map = entry.dims[scale.dim] if entry.dims else None
        factors = torch.tensor(scale.values, dtype=torch.float64)
        factors = factors if index_map is None else factors[index_map.index()]
        shape = [-1 if dim == scale.dim else 1 for dim in range(value.dim())]
        value = value * factors.to(value.device, value.dtype).reshape(shape)
    return value.clone() if value.data_ptr() == source.data_ptr() else value


def strides(dims: tuple[IndexMap | None, ...]) -> tuple[slice | None, ...] | None:
    """Returns the slice per dim that selects the remaining units (None: all); None if they are not evenly spaced."""
    found: list[slice | None] = []
    for index_map in dims:
        index = None if index_map is None or index_map.unchanged else index_map.index()
        if index is None:
            found.append(None)
            continue
        if len(index) == 0:
            found.append(slice(0, 0))
            continue
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        if step < 1 or not torch.equal(index, index[0] + step * torch.arange(len(index))):
            return None
        found.append(slice(int(index[0]), int(index[-1]) + 1, step))
    return tuple(found)
