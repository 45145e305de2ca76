"""Reads a checkpoint: verifies it first, then reads part by part and compares each with its sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from progc.checkpoints.manifest import FileEntry, Manifest
from progc.checkpoints.rng import fresh_rng, set_rng_state
from progc.checkpoints.searching import verify
from progc.checkpoints.sharded import SHARDS, ShardIndex, is_spread
from progc.checkpoints.state import CONFIG, MODEL, SCHEDULE, TRAINING, NamedTensors, State, ema_file, rng_stem
from progc.data.order import DataPosition
from progc.errors import InputError, one_line
from progc.files.json import decode
from progc.files.reading import Entry, header_entries, header_length, is_count, open_file, parse_object
from progc.files.weights import check_fit
from progc.ir.tensor_file import DTYPES_BY_NAME
from progc.lift.averages import Averages
from progc.lift.optimizers.saved import load_optimizer_data
from progc.ranks.agreeing import rank as own_rank

if TYPE_CHECKING:
    from progc.schedule import Schedule

_CHUNK = 8 << 20


def load(path: str | Path) -> Checkpoint:
    """Verifies and opens a checkpoint; only its manifest is kept in memory.

    Raises:
        InputError: as for `verify`.
    """
    return Checkpoint(Path(path), verify(path))


class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: folder of the checkpoint.
        manifest: manifest of the checkpoint.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._kept: dict[str, dict[str, torch.Tensor]] | None = None

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of the model by name, on the CPU."""
        return self._tensors(MODEL)

    def average(self, decay: float) -> dict[str, torch.Tensor]:
        """Returns the averaged copy with this decay, tensors by name on the CPU.

        Raises:
            InputError: there is no such copy; the message lists the decays that exist.
        """
        if not self._has(ema_file(decay)):
            raise InputError(f"{self.path} has no average with decay {decay}; it has {list(self.decays)}")
        return self._tensors(ema_file(decay))

    @property
    def decays(self) -> tuple[float, ...]:
        """Decays of the averaged copies."""
        ema = self._training["ema"]
        return () if ema is None else tuple(ema["decays"])

    @property
    def data(self) -> DataPosition | None:
        """Position of the run in its data; None if it was saved without one.

        Raises:
            InputError: the position refers to another version of the order of the data.
        """
        value = self._training["data"]
        try:
            return None if value is None else DataPosition.from_json(value)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def controller(self, name: str) -> dict[str, Any]:
        """Returns the state of one controller, for values that are needed before there is an object to restore.

        Raises:
            InputError: there is no controller of this name.
        """
        found = self._training["controllers"].get(name)
        if not isinstance(found, dict):
            raise InputError(f"{self.path} has no controller `{name}`; it has {sorted(self._training['controllers'])}")
        return found

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved configuration; None if none was saved."""
        return self._object(CONFIG) if CONFIG in self.manifest.files else None

    @cached_property
    def schedule(self) -> Schedule | None:
        """The schedule of the run; None if none was saved."""
        if SCHEDULE not in self.manifest.files:
            return None
        from progc.schedule import Schedule

        with _reading(self.path / SCHEDULE):
            return Schedule.from_json(self._object(SCHEDULE))

    def restore(self, state: State, *, skip: Iterable[str] = (), rank: int | None = None) -> None:
        """Restores the live objects: optimizers, weights, averages, then the rest, and random states last.

        Names, shapes, dtypes, tied names and which parameters train are compared before anything is changed. A model
        that was built for another stage is refused instead of being trained half frozen.

        Args:
            state: the objects to restore, built as the saved ones and of the same stage.
            skip: parts to leave out, although one side has them: `ema`, `optimizer`, `scaler`, `controllers`; `rng`
                leaves the generators unchanged; `frozen` accepts another set of trainable parameters.
            rank: rank whose random states are restored; None is this process. A rank that did not save gets new
                seeds.

        Raises:
            InputError: a part is missing on one side, does not fit, or is invalid.
        """
        with self._reading_once():
            self._restore(state, set(skip), rank)

    def _restore(self, state: State, left_out: set[str], rank: int | None) -> None:
        unknown = left_out - {"ema", "optimizer", "scaler", "controllers", "rng", "frozen"}
        if unknown:
            raise InputError(f"skip: unknown part {sorted(unknown)[0]!r}")
        self._check_parts(state, left_out)
        named = NamedTensors(state.model)
        spread = next((name for name, tensor in named.persistent.items() if is_spread(tensor)), None)
        if spread is not None:
            raise InputError(f"{spread} is sharded over ranks (DTensor); restore the model first, then shard it")
        weights = self.weights()
        self._check_model(named, weights, type(state.model).__name__, left_out)
        random = None if "rng" in left_out else self._random(state, own_rank() if rank is None else rank)
        averages = self._averages(state.ema) if state.ema is not None and "ema" not in left_out else None
        if "optimizer" not in left_out:
            for stem, optimizer in state.optimizers.items():
                self._load_optimizer(stem, optimizer, named)
        with torch.no_grad():
            for name, tensor in weights.items():
                named.persistent[name].copy_(tensor)
        if averages is not None:
            assert state.ema is not None
            state.ema.load_state_dict(averages)
        where = self.path / f"{TRAINING}.json"
        if state.scaler is not None and "scaler" not in left_out:
            with _reading(where):
                state.scaler.load_state_dict(self._training["scaler"])
        if "controllers" not in left_out:
            for name, item in state.controllers.items():
                with _reading(where):
                    item.load_state_dict(self._training["controllers"][name])
        if random is not None:
            random()

    def _check_parts(self, state: State, left_out: set[str]) -> None:
        there = set(self.manifest.holds) - {"rng", "data", "schedule", "config"}
        given = set(state.holds)
        for part in sorted((there ^ given) - left_out):
            problem = f"{self.path} holds {part}, but the state does not"
            if part in given:
                problem = f"the state has {part}, but {self.path} does not, so it would start from scratch"
            raise InputError(f"{problem}; build the state as it was saved, or give skip=({part!r},)")
        if "controllers" not in left_out and set(self._training["controllers"]) != set(state.controllers):
            found = sorted(self._training["controllers"])
            raise InputError(f"{self.path} holds controllers {found}, but the state has {sorted(state.controllers)}")
        if "optimizer" not in left_out:
            files = {name.removesuffix(".json") for name in self.manifest.files if name.startswith("optimizer")}
            files -= {name for name in files if name.endswith(".safetensors")}
            if files != set(state.optimizers):
                raise InputError(f"{self.path} holds {sorted(files)}, but the state has {sorted(state.optimizers)}")

    def _check_model(
        self, named: NamedTensors, weights: Mapping[str, torch.Tensor], label: str, left_out: set[str]
    ) -> None:
        path = self.path / MODEL
        check_fit(path, weights, named.persistent, label)
        for name, tensor in weights.items():
            if tensor.dtype != named.persistent[name].dtype:
                raise InputError(
                    f"{path}: {name} is {tensor.dtype}, but in the model it is {named.persistent[name].dtype}; "
                    "build the model in the dtype it was saved in"
                )
        facts, saved = named.facts, self._training
        if facts["tied"] != saved["tied"]:
            both = [*facts["tied"], *saved["tied"]]
            names = next(group for group in both if (group in facts["tied"]) != (group in saved["tied"]))
            raise InputError(f"{path}: {', '.join(names)} are tied on one side only; tie them as they were saved")
        differ = sorted(set(facts["frozen"]) ^ set(saved["frozen"]))
        if differ and "frozen" not in left_out:
            state = "does not train in the model" if differ[0] in facts["frozen"] else "trains in the model"
            raise InputError(
                f"{self.path} was saved with other trainable parameters: {differ[0]} {state} ({len(differ)} parameters "
                f"differ); build stage {self.manifest.stage} first, or give skip=('frozen',)"
            )

    def _averages(self, ema: Averages) -> dict[str, torch.Tensor]:
        """The averages in the form that `Averages.load_state_dict` takes."""
        saved = self._training["ema"]
        if list(ema.decays) != list(saved["decays"]):
            raise InputError(
                f"{self.path} has averages of decays {list(saved['decays'])}, but the state has {list(ema.decays)}"
            )
        own = ema.state_dict()
        found = {"num_updates": torch.tensor(saved["num_updates"])}
        for decay in ema.decays:
            for name, tensor in self.average(decay).items():
                key = f"{decay!r}/{name}"
                if key not in own and name in ema.tensors[decay]:
                    continue  # a tied name; its values are under the first name
                found[key] = tensor
                if key in own and (own[key].dtype != tensor.dtype or own[key].shape != tensor.shape):
                    raise InputError(f"{self.path / ema_file(decay)}: {name} has another shape or dtype in the state")
        if found.keys() != own.keys():
            odd = sorted(found.keys() ^ own.keys())[0]
            raise InputError(f"{self.path}: average {odd} exists on one side only; average the model of this stage")
        return found

    def _load_optimizer(self, stem: str, optimizer: torch.optim.Optimizer, named: NamedTensors) -> None:
        path = self.path / f"{stem}.json"
        data = self._object(path.name)
        with _reading(path):
            load_optimizer_data(data, lambda: self._tensors(f"{stem}.safetensors"), optimizer, named.as_program, path)

    def _random(self, state: State, rank: int) -> Callable[[], None]:
        """Returns a function that restores the generators of a rank, to be called last."""
        there = rank < self.manifest.world
        path = self.path / f"{rng_stem(rank if there else 0)}.json"
        saved = self._decoded(path.stem)
        names = saved.get("generators")
        if not isinstance(names, dict) or set(names) != set(state.generators):
            found = sorted(map(str, names or ()))
            raise InputError(
                f"{path} holds generators {found}, but the state has {sorted(state.generators)}; give the same ones"
            )

        def restore() -> None:
            with _reading(path):
                if there:
                    set_rng_state(saved, state.generators)
                else:
                    fresh_rng(saved, rank, state.generators)

        return restore

    @cached_property
    def _training(self) -> dict[str, Any]:
        found = self._decoded(TRAINING)
        wanted = {"frozen", "tied", "ema", "data", "scaler", "controllers"}
        if found.keys() != wanted or not isinstance(found["controllers"], dict):
            raise InputError(f"{self.path / TRAINING}.json is not a training state")
        with _reading(self.path / f"{TRAINING}.json"):
            _check_training(found)
        return found

    def _decoded(self, stem: str) -> dict[str, Any]:
        path = self.path / f"{stem}.json"
        data = self._object(path.name)
        tensors = self._tensors(f"{stem}.safetensors") if self._has(f"{stem}.safetensors") else {}
        with _reading(path):
            found = decode(data, tensors)
        if not isinstance(found, dict):
            raise InputError(f"{path}: expected a JSON object, got a {type(found).__name__}")
        return found

    def _object(self, name: str) -> dict[str, Any]:
        data = self._bytes(name)
        try:
            return parse_object(data.numpy().tobytes().decode("utf-8"), self.path / name)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path / name} is not valid UTF-8") from error

    @cached_property
    def _index(self) -> ShardIndex | None:
        """The places of tensors that were sharded over ranks; None if none were."""
        return ShardIndex(self._object(SHARDS), self.path / SHARDS) if SHARDS in self.manifest.files else None

    def _has(self, name: str) -> bool:
        return name in self.manifest.files or (self._index is not None and name in self._index.files)

    @contextlib.contextmanager
    def _reading_once(self) -> Iterator[None]:
        """Keeps files of ranks inside the context, since each holds a part of every tensor."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def _part(self, name: str) -> dict[str, torch.Tensor]:
        assert self._kept is not None
        if name not in self._kept:
            self._kept[name] = self._file(name)
        return self._kept[name]

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        if self._index is None or name not in self._index.files:
            return self._file(name)
        if self._kept is not None:
            return self._index.whole(name, self._part)
        with self._reading_once():
            return self._index.whole(name, self._part)

    def _file(self, name: str) -> dict[str, torch.Tensor]:
        path, data = self.path / name, self._bytes(name)
        length = header_length(data[:8].numpy().tobytes(), len(data), path)
        entries = header_entries(data[8 : 8 + length].numpy().tobytes(), len(data), path)
        with _reading(path):
            return {key: _tensor(data, entry) for key, entry in entries.items()}

    def _bytes(self, name: str) -> torch.Tensor:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise InputError(f"{self.path / name} is missing from the manifest")
        return _checked_bytes(self.path / name, entry)


def _checked_bytes(path: Path, entry: FileEntry) -> torch.Tensor:
    """Reads the bytes of a file, `[size]` uint8, and compares them with its sha256."""
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size != entry.size:
                raise InputError(f"{path} was changed after it was verified")
            data = torch.empty(entry.size, dtype=torch.uint8)
            array: Any = data.numpy()
            view, sha = memoryview(array), hashlib.sha256()
            while view:
                count = file.readinto(view[:_CHUNK])  # type: ignore[attr-defined]
                if not count:
                    break
                sha.update(view[:count])
                view = view[count:]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if sha.hexdigest() != entry.sha256:
        raise InputError(f"{path} was changed after it was verified")
    return data


def _tensor(data: torch.Tensor, entry: Entry) -> torch.Tensor:
    dtype = DTYPES_BY_NAME[entry.dtype]
    part = data[entry.start : entry.end]
    if entry.start % dtype.itemsize:
        part = part.clone()
    return part.view(dtype).reshape(entry.shape)


def _check_training(found: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError if a value is invalid."""
    ema, data = found["ema"], found["data"]
    names = [*found["frozen"], *(name for group in found["tied"] for name in group)]
    if not all(isinstance(name, str) for name in names) or not all(isinstance(group, list) for group in found["tied"]):
        raise ValueError("invalid names of tensors")
    if ema is not None and not (
        all(isinstance(decay, float) for decay in ema["decays"]) and is_count(ema["num_updates"])
    ):
        raise ValueError("invalid averages")
    with contextlib.suppress(InputError):  # another version of the order matters only to those who use the position
        if data is not None:
            DataPosition.from_json(data)


class _reading:
    """Turns any error that invalid data cause in other code into an InputError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError) or not isinstance(error, Exception):
            return
        text = one_line(error, 160)
        raise InputError(f"{self.path} does not hold what was saved ({text})") from error
