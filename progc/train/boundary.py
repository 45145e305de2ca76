"""Checks a boundary between two stages, and records what was found.

The trainer runs a boundary in this order (`Trainer._crossed`): save, grow the network with its optimizer and
averages, check, compare hashes across ranks, emit and wrap the next stage. The check compares the networks before and
after growth on one batch: the loss, and the outputs in float64. The hash covers everything that trains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from progc.data.staged import for_stage
from progc.data.task import Task
from progc.errors import CheckError
from progc.ir.binding import InputBinding
from progc.ir.check import run_float64
from progc.lift.averages import Averages
from progc.schedule.running import RunningStage, stage_inputs, trained
from progc.train.parallel.base import Parallel
from progc.train.settings import Settings
from progc.train.stepping import autocast, samples_in


@dataclasses.dataclass(frozen=True)
class Record:
    """What happened at one boundary.

    Attributes:
        stage: index of the stage that begins.
        previous: index of the stage that ended.
        step: optimizer steps done.
        loss_before, loss_after: loss in eval mode on the same batch, each network at its own image size.
        max_abs_diff, max_rel_diff: largest absolute and relative difference over all outputs, in float64; None where
            outputs cannot be compared.
        lossless: whether analysis says that growth keeps the function.
        compared: why outputs were not compared; None if they were.
        hash: sha256 (hex) over weights, averages and optimizer state after the boundary, the same on all ranks.
        compiles: number of functions that the train graph of the stage compiles.
        notes: notes of the passes.
        seconds: seconds by phase.
        lost: seconds from the last step of the previous stage until the next stage can take its first step.
    """

    stage: int
    previous: int
    step: int
    loss_before: float
    loss_after: float
    max_abs_diff: float | None
    max_rel_diff: float | None
    lossless: bool
    compared: str | None
    hash: str
    compiles: int
    notes: tuple[str, ...]
    seconds: dict[str, float]
    lost: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the line for `metrics.jsonl`, with all times under `measured`."""
        values = dataclasses.asdict(self)
        seconds = {**values.pop("seconds"), "lost": values.pop("lost")}
        del values["step"]
        return {**values, "notes": list(self.notes), "measured": {f"seconds_{name}": s for name, s in seconds.items()}}

    def __str__(self) -> str:
        if self.max_rel_diff is None:
            found = f"outputs not compared: {self.compared}"
        else:
            found = f"outputs differ by {self.max_rel_diff:.1e} (float64)"
        return (
            f"stage {self.stage + 1} begins at step {self.step}: loss {self.loss_before:.4f} before, "
            f"{self.loss_after:.4f} after, {found}, {self.lost:.1f} s"
        )


class Clock:
    """Measures the seconds of a boundary, in total and by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to a phase."""
        start = time.perf_counter()
        yield
        self.phases[phase] = round(self.phases.get(phase, 0.0) + time.perf_counter() - start, 4)

    @property
    def total(self) -> float:
        """Seconds since this object was made."""
        return round(time.perf_counter() - self._start, 4)


class Crossing:
    """The check of one boundary: made before growth, closed after it."""

    def __init__(
        self,
        before: RunningStage,
        task: Task,
        batch: Any,
        parallel: Parallel,
        settings: Settings,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            before: the stage that ended.
            task: samples and loss of the run.
            batch: samples at the full image size, the same on all ranks.
            parallel: the processes that train together.
            settings: settings of the run.
            clock: clock of the boundary; None starts one here.
        """
        self.parallel, self.settings, self.task = parallel, settings, task
        self.batch = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(parallel.device), batch)
        self.clock = clock or Clock()
        self._stage = before.stage
        with self.clock.timed("check"):
            self._images = self._size(before)
            self._before = self._outputs(before)
            self._loss = self._loss_of(before, before.module)

    def close(self, after: RunningStage, step: int) -> Record:
        """Compares the networks and returns the record. Call it before the stage is wrapped, while tensors are whole.

        Raises:
            CheckError: growth is lossless by analysis but the outputs changed, or ranks differ.
        """
        with self.clock.timed("check"):
            loss = self._loss_of(after, after.module)
            absolute = relative = None
            reason = None
            if self._size(after) != self._images:
                reason = "the image size changed"
            elif not all(_finite(output) for output in self._before):
                reason = "outputs were not finite before"
            else:
                absolute, relative = self._difference(after)
                if after.lossless and not relative <= after.tolerance:
                    raise CheckError(
                        f"{self._name(after)}: growth is lossless by analysis, but outputs differ by {relative:.1e} "
                        "(float64, relative); please report this (the checkpoint before the boundary is whole)"
                    )
        with self.clock.timed("hash"):
            own = digest(after.module, after.optimizer, after.ema)
            check_same(own)
        return Record(
            after.stage.index, self._stage.index, step, self._loss, loss, absolute, relative, after.lossless is True,
            reason, own, 0, after.notes, dict(self.clock.phases), self.clock.total,
        )  # fmt: skip

    def _difference(self, after: RunningStage) -> tuple[float, float]:
        """Largest absolute difference, and largest relative to the largest entry of its output; inf if not finite."""
        found = self._outputs(after)
        absolute = relative = 0.0
        if [_shape(output) for output in self._before] != [_shape(output) for output in found]:
            raise CheckError(
                f"{self._name(after)}: expected outputs of shapes {[_shape(o) for o in self._before]}, got "
                f"{[_shape(o) for o in found]}; please report this (the checkpoint before the boundary is whole)"
            )
        for a, b in zip(self._before, found, strict=True):
            if isinstance(a, torch.Tensor) and (a.is_floating_point() or a.is_complex()) and a.numel():
                gap = (a - b).abs().max().item()
                gap = gap if math.isfinite(gap) else math.inf
                absolute = max(absolute, gap)
                relative = max(relative, gap / (a.abs().max().item() or 1.0))
        return absolute, relative

    @staticmethod
    def _name(after: RunningStage) -> str:
        return f"boundary to stage {after.stage.index}"

    def _call(self, running: RunningStage) -> tuple[Task, Any, tuple[Any, ...], dict[str, Any]]:
        """The task of a stage, the batch at its image size, and the inputs of the network."""
        task = for_stage(self.task, running.stage.regularisation, running.program)
        batch = task.fit(self.batch)
        args, kwargs = task.inputs(batch)
        return task, batch, args, {**kwargs, **running.inputs(samples_in(batch))}

    def _size(self, running: RunningStage) -> list[tuple[int, ...]]:
        _, _, args, kwargs = self._call(running)
        leaves = [*pytree.tree_leaves(args), *pytree.tree_leaves(kwargs)]
        return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    def _outputs(self, running: RunningStage) -> list[Any]:
        """In eval mode, float64."""
        _, _, args, kwargs = self._call(running)
        program = trained(running.program, running.module)
        # Use the same row of the stage identifier on both sides: the next stage has another row.
        kwargs = {**kwargs, **stage_inputs(program, self._stage, samples_in(self.batch), self.parallel.device)}
        leaves = InputBinding(program).flatten(args, kwargs)
        double = [
            leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf for leaf in leaves
        ]
        outputs, _ = run_float64(program, "eval", double)
        return outputs

    def _loss_of(self, running: RunningStage, module: nn.Module) -> float:
        task, batch, args, kwargs = self._call(running)
        training = module.training
        module.eval()
        try:
            with torch.no_grad(), autocast(self.parallel.device, self.settings):
                return float(task.loss(module(*args, **kwargs), batch))
        finally:
            module.train(training)


def _shape(output: Any) -> list[int] | None:
    return list(output.shape) if isinstance(output, torch.Tensor) else None


def _finite(output: Any) -> bool:
    return not isinstance(output, torch.Tensor) or bool(torch.isfinite(output).all())


def digest(module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> str:
    """Returns the sha256 (hex) over parameters, buffers, averages and optimizer state.

    It covers names, shapes, dtypes, bytes, and which parameters train. Optimizer state and groups are hashed by the
    names of their parameters, so the order of parameters in the optimizer does not matter. Tensors must be whole (no
    DTensor).
    """
    whole = hashlib.sha256()
    names: dict[int, str] = {}
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(held, key=lambda item: item[0]):
        names.setdefault(id(tensor), name)
        _add(whole, f"{name} {tensor.requires_grad}", tensor)
    if ema is not None:
        _add(whole, "ema", ema.num_updates)
        for decay, copy in sorted(ema.tensors.items()):
            for name, tensor in sorted(copy.items()):
                _add(whole, f"ema {decay!r} {name}", tensor)
    for number, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        for key, value in sorted(group.items()):
            if key != "params":
                _add(whole, f"group {number} {key}", value)
        # A parameter outside the module has no name and is hashed by its place.
        entries = [(names.get(id(p), f"?{place}"), p) for place, p in enumerate(group["params"])]
        for name, parameter in sorted(entries, key=lambda entry: entry[0]):
            _add(whole, f"group {number}", name)
            assert optimizer is not None
            _add(whole, f"state {number} {name}", optimizer.state.get(parameter, {}))
    return whole.hexdigest()


def check_same(own: str) -> None:
    """Compares the hash of this rank with those of all others.

    Raises:
        CheckError: some ranks differ from rank 0; raised on every rank, with their numbers.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    odd = [str(rank) for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise CheckError(
            f"ranks differ from rank 0 in weights, averages or optimizer state: {', '.join(odd)}; resume from the last "
            "checkpoint"
        )


def _add(whole: Any, name: str, value: Any) -> None:
    """Adds a tensor, or plain data with tensors in it. Other objects are hashed by type: their text has addresses."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        whole.update(f"{name} {len(value)}\n".encode())
        for key in sorted(value, key=str):
            _add(whole, f"{name} {key}", value[key])
    elif isinstance(value, (list, tuple)):
        whole.update(f"{name} {len(value)}\n".encode())
        for place, item in enumerate(value):
            _add(whole, f"{name} {place}", item)
    else:
        plain = isinstance(value, (bool, int, float, complex, str, type(None)))
        whole.update(f"{name} {value!r}\n".encode() if plain else f"{name} {type(value).__qualname__}\n".encode())
