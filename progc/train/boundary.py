"""What a boundary is checked by, and the record that it leaves.

The order of a boundary is the trainer's (`Trainer._crossed`): save, transform, map optimizer and averages, check, hash
across ranks, emit and wrap anew, go on compiled. Checking compares the network before with the one behind it, on one
batch: its loss, and its outputs in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.data.staged import for_stage
from progc.data.task import Task
from progc.errors import CheckError
from progc.ir.binding import InputBinding
from progc.ir.check import run_float64
from progc.schedule.running import RunningStage, stage_inputs, trained
from progc.train.hashing import check_same, digest
from progc.train.parallel.base import Parallel
from progc.train.settings import Settings
from progc.train.stepping import autocast, samples_in


@dataclasses.dataclass(frozen=True)
class Record:
    """One boundary.

    Attributes:
        stage: index of the stage that begins.
        previous: of the one that ended.
        step: optimizer steps done.
        loss_before, loss_after: in eval mode on the same batch, each network at its own image size.
        max_abs_diff, max_rel_diff: of all outputs in float64; None where they cannot be compared.
        lossless: by analysis.
        compared: why outputs are not compared; None if they are.
        hash: sha256 over weights, averages and optimizer state behind the boundary, the same on all ranks.
        compiles: functions that the train graph of the stage compiles.
        notes: what the passes say.
        seconds: by phase.
        lost: seconds in all from the last step of the stage before until the next one can take its first.
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
        """As metrics have it: what the clock says stands under `measured`."""
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
    """Seconds of a boundary since this was made, and by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds to the seconds of a phase."""
        start = time.perf_counter()
        yield
        self.phases[phase] = round(self.phases.get(phase, 0.0) + time.perf_counter() - start, 4)

    @property
    def total(self) -> float:
        """Seconds until now."""
        return round(time.perf_counter() - self._start, 4)


class Crossing:
    """One boundary: made before growth, closed behind it."""

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
            batch: samples at the full image size, the same on all ranks.
            clock: that runs since the boundary began; None: it begins here.
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
        """The record, where everything is as it ought to be; before the stage is wrapped: tensors are whole.

        Raises:
            CheckError: analysis says that nothing changed, and the outputs did; or ranks differ.
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
                        f"{self._name(after)}: growth is lossless by analysis, and outputs differ by {relative:.1e} "
                        "(float64, relative); the checkpoint before it is whole: report this"
                    )
        with self.clock.timed("hash"):
            own = digest(after.module, after.optimizer, after.ema)
            check_same(own)
        return Record(
            after.stage.index, self._stage.index, step, self._loss, loss, absolute, relative, after.lossless is True,
            reason, own, 0, after.notes, dict(self.clock.phases), self.clock.total,
        )  # fmt: skip

    def _difference(self, after: RunningStage) -> tuple[float, float]:
        """Largest absolute difference, and largest relative to the largest entry of an output; inf where not finite."""
        found = self._outputs(after)
        absolute = relative = 0.0
        if [_shape(output) for output in self._before] != [_shape(output) for output in found]:
            raise CheckError(
                f"{self._name(after)}: outputs had shapes {[_shape(o) for o in self._before]} before, and have "
                f"{[_shape(o) for o in found]} now; the checkpoint before it is whole: report this"
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

    def _call(self, running: RunningStage) -> tuple[Task, tuple[Any, ...], dict[str, Any]]:
        task = for_stage(self.task, running.stage.regularisation, running.program)
        args, kwargs = task.inputs(self.batch)
        return task, args, {**kwargs, **running.inputs(samples_in(self.batch))}

    def _size(self, running: RunningStage) -> list[tuple[int, ...]]:
        _, args, kwargs = self._call(running)
        leaves = [*pytree.tree_leaves(args), *pytree.tree_leaves(kwargs)]
        return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    def _outputs(self, running: RunningStage) -> list[Any]:
        """In eval mode, float64."""
        _, args, kwargs = self._call(running)
        program = trained(running.program, running.module)
        # The same row of the stage identifier on both sides: the next stage has one of its own.
        kwargs = {**kwargs, **stage_inputs(program, self._stage, samples_in(self.batch), self.parallel.device)}
        leaves = InputBinding(program).flatten(args, kwargs)
        double = [
            leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf for leaf in leaves
        ]
        outputs, _ = run_float64(program, "eval", double)
        return outputs

    def _loss_of(self, running: RunningStage, module: nn.Module) -> float:
        task, args, kwargs = self._call(running)
        training = module.training
        module.eval()
        try:
            with torch.no_grad(), autocast(self.parallel.device, self.settings):
                return float(task.loss(module(*args, **kwargs), self.batch))
        finally:
            module.train(training)


def _shape(output: Any) -> list[int] | None:
    return list(output.shape) if isinstance(output, torch.Tensor) else None


def _finite(output: Any) -> bool:
    return not isinstance(output, torch.Tensor) or bool(torch.isfinite(output).all())
