"""The state of a training run, and a snapshot of it as named files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.checkpoints.rng import rng_state
from progc.checkpoints.sharded import SHARDS, cut, is_spread, shard_file
from progc.data.order import DataPosition
from progc.errors import InputError
from progc.files.json import encode
from progc.ir.program import Program
from progc.lift.averages import Averages, named_tensors
from progc.lift.optimizers.saved import optimizer_as_data
from progc.ranks.agreeing import gathered, rank, world

if TYPE_CHECKING:
    from progc.schedule import Schedule

MODEL, TRAINING, CONFIG, SCHEDULE = "model.safetensors", "training", "config.json", "schedule.json"


@dataclasses.dataclass(frozen=True)
class State:
    """The live objects of a training loop, which a checkpoint saves and restores.

    Attributes:
        model: a module (also wrapped by DistributedDataParallel or torch.compile) or a program.
        optimizer: one optimizer, or several by name, over parameters of the model.
        ema: averaged copies.
        scaler: a `torch.amp.GradScaler`.
        controllers: other objects with `state_dict` and `load_state_dict` by name, such as learning-rate schedulers.
        generators: your own generators by name; the global ones are always saved.
    """

    model: nn.Module | Program
    optimizer: Optimizer | Mapping[str, Optimizer] | None = None
    ema: Averages | None = None
    scaler: Any = None
    controllers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    generators: Mapping[str, torch.Generator] = dataclasses.field(default_factory=dict)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers by the stem of their files."""
        if self.optimizer is None:
            return {}
        if isinstance(self.optimizer, Optimizer):
            return {"optimizer": self.optimizer}
        return {f"optimizer-{name}": optimizer for name, optimizer in self.optimizer.items()}

    @property
    def holds(self) -> tuple[str, ...]:
        """Names of the parts that this state has."""
        parts = {
            "model": True,
            "optimizer": bool(self.optimizers),
            "ema": self.ema is not None,
            "scaler": self.scaler is not None,
            "controllers": bool(self.controllers),
        }
        return tuple(name for name, there in parts.items() if there)


class NamedTensors:
    """The tensors of a model under the names of the user's module, for optimizers and files.

    Attributes:
        tensors: tensors by name, tied ones under each name.
        persistent: the tensors that are saved.
        tied: further names of tied tensors, with the first name of the tensor.
    """

    def __init__(self, model: nn.Module | Program) -> None:
        """
        Raises:
            InputError: a tensor has no values, or the state dict holds something other than tensors.
        """
        if isinstance(model, Program):
            self.tensors, self.persistent = dict(model.tensors), model.persistent()
        else:
            odd = [name for name, value in model.state_dict(keep_vars=True).items() if not _is_tensor(value)]
            if odd:
                raise InputError(f"the model has state that is not a tensor ({odd[0]}); save it as a controller")
            self.tensors = self.persistent = named_tensors(model)
        first: dict[int, str] = {}
        self.tied: dict[str, str] = {}
        for name, tensor in self.persistent.items():
            if first.setdefault(id(tensor), name) != name:
                self.tied[name] = first[id(tensor)]
        for name, tensor in self.persistent.items():
            if tensor.is_meta:
                raise InputError(f"{name} has no values (meta or deferred tensor); give the complete model")

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields names and parameters; a tied parameter once."""
        for name, tensor in self.tensors.items():
            if isinstance(tensor, nn.Parameter) and name not in self.tied:
                yield name, tensor

    @property
    def as_program(self) -> Program:
        """This object as a program, for functions that use only `parameters` and `tensors` of a program."""
        found: Any = self
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that a file of tensors cannot hold: tied names, and parameters that do not train."""
        held = self.persistent.items()
        frozen = [name for name, tensor in held if isinstance(tensor, nn.Parameter) and not tensor.requires_grad]
        groups: dict[str, list[str]] = {}
        for alias, name in self.tied.items():
            groups.setdefault(name, [name]).append(alias)
        return {"frozen": sorted(frozen), "tied": sorted(sorted(group) for group in groups.values())}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory.

    Attributes:
        facts: facts for the manifest, without files.
        tensors: tensors by file name and name.
        texts: JSON text by file name.
        headers: further entries of the header by file name.
        together: whether all ranks write; each then has its own snapshot, and only that of rank 0 has facts and texts.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    texts: Mapping[str, str]
    headers: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    together: bool = False

    def moved(self, buffers: Buffers) -> Snapshot:
        """Returns the snapshot with copies of all tensors in host memory."""
        return dataclasses.replace(self, tensors=buffers.copied(self.tensors))


class Buffers:
    """Host memory for copies of snapshots, reused because allocating it takes longer than copying."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], torch.Tensor] = {}

    @torch.no_grad()
    def copied(self, files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
        """Returns copies of tensors by file and name; a tensor with several names is copied once."""
        held: dict[tuple[str, str], torch.Tensor] = {}
        made: dict[int, torch.Tensor] = {}
        devices = set()
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                if id(tensor) not in made:
                    buffer = self._held.get((file, name))
                    if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                    buffer.copy_(tensor, non_blocking=tensor.is_cuda)
                    devices.add(tensor.device)
                    made[id(tensor)] = held[file, name] = buffer
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        self._held = held
        return {file: {name: made[id(tensor)] for name, tensor in own.items()} for file, own in files.items()}


def snapshot(
    state: State,
    step: int,
    *,
    epoch: int = 0,
    stage: int = 0,
    data: DataPosition | None = None,
    schedule: Schedule | None = None,
    config: Mapping[str, Any] | None = None,
    run_id: str = "",
) -> Snapshot | None:
    """Returns a checkpoint in memory that shares its tensors with `state`.

    Ranks other than 0 only send their random states and get None. If tensors are sharded over ranks (DTensor), every
    rank gets its own part.

    Args:
        state: the objects to save.
        step, epoch, stage: see `Manifest`.
        data: position in the data.
        schedule: schedule of the run.
        config: the resolved configuration, plain JSON data.
        run_id: identifier of the run.

    Raises:
        InputError: something in `state` can be saved neither as tensor nor as JSON; the message names it.
    """
    texts: dict[str, str] = {}
    tensors: dict[str, dict[str, torch.Tensor]] = {}

    def put(stem: str, value: Any, what: str) -> None:
        found, held = encode(value, what)
        texts[f"{stem}.json"] = _json(found if isinstance(found, dict) else {"value": found}, what)
        if held:
            tensors[f"{stem}.safetensors"] = held

    random: list[tuple[Any, dict[str, torch.Tensor]]] = gathered(encode(rng_state(state.generators), "generators"))
    named = NamedTensors(state.model)
    together = any(is_spread(tensor) for tensor in named.persistent.values())
    if rank() != 0 and not together:
        return None
    tensors[MODEL] = dict(named.persistent)
    for stem, optimizer in state.optimizers.items():
        found, held = optimizer_as_data(optimizer, named.as_program)
        texts[f"{stem}.json"], tensors[f"{stem}.safetensors"] = _json(found, stem), held
    if state.ema is not None:
        for decay, copy in state.ema.tensors.items():
            tensors[ema_file(decay)] = copy
    training = {
        **named.facts,
        "ema": None if state.ema is None else {"decays": state.ema.decays, "num_updates": state.ema.num_updates},
        "data": None if data is None else data.to_json(),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "controllers": {name: item.state_dict() for name, item in state.controllers.items()},
    }
    put(TRAINING, training, "training state")
    headers: dict[str, Mapping[str, str]] = {}
    if together:
        file = shard_file(rank(), world())
        pieces, headers[file], texts[SHARDS] = cut(tensors, rank(), world())
        tensors = {file: pieces}
        if rank() != 0:
            return Snapshot({}, tensors, {}, headers, together)
    for number, (found, held) in enumerate(random):
        texts[f"{rng_stem(number)}.json"], tensors[f"{rng_stem(number)}.safetensors"] = _json(found, "rng"), held
    if schedule is not None:
        from progc.files.writing import json_text

        texts[SCHEDULE] = json_text(schedule.to_json()) + "\n"
    if config is not None:
        texts[CONFIG] = _json(config, "config")
    more = {"data": data, "schedule": schedule, "config": config}
    holds = [*state.holds, "rng", *(name for name, value in more.items() if value is not None)]
    facts = {"step": step, "epoch": epoch, "stage": stage, "run": run_id, "world": world(), "holds": holds}
    return Snapshot(facts, tensors, texts, headers, together)


def ema_file(decay: float) -> str:
    """Returns the file name of the averaged copy with this decay."""
    return f"ema-{decay!r}.safetensors"


def rng_stem(number: int) -> str:
    """Returns the stem of the files with the random states of a rank."""
    return f"rng-{number:05d}"


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be saved as JSON ({error}); give text, numbers, lists and dicts") from error


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
