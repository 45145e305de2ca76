"""Watches a run: validation, the best checkpoint, and what the rules that end stages are given.

Validation runs with the trained weights and with each averaged copy, at the image size of the stage and at that of the
full network. `Seen` holds the running sums and the best
validation, which are part of a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.data.finite import NotFiniteError, odd_outputs
from progc.data.loading import validate
from progc.data.staged import image_size
from progc.data.task import Task
from progc.errors import CheckError, InputError
from progc.ir.program import Program
from progc.ir.random_state import kept_random_states
from progc.lift.averages import Averages
from progc.schedule.controlling import Controller
from progc.schedule.pace import Pace
from progc.schedule.rules import Gain, Plateau
from progc.schedule.running import RunningStage
from progc.schedule.schedule import Schedule
from progc.train.ending import Ending
from progc.train.finite import blaming
from progc.train.full_size import PREFIX, FullSize
from progc.train.keeping import Keeping
from progc.train.metrics import Metrics
from progc.train.parallel import Parallel
from progc.train.progress import Progress
from progc.train.settings import Settings
from progc.train.stepping import Active, autocast, samples_in

SHOWN = 20
"""Number of skipped steps that the summary of a run lists; `metrics.jsonl` has all."""


class Watch:
    """Validates when due, marks the best checkpoint, and passes results to the rules.

    Attributes:
        metrics: results of the last complete validation; empty before the first.
    """

    def __init__(
        self,
        schedule: Schedule,
        settings: Settings,
        parallel: Parallel,
        keeping: Keeping,
        seen: Seen,
        controller: Controller | None,
        log: Metrics,
        progress: Progress,
        *,
        task: Task,
        full: Program,
        pace: Pace,
        ending: Ending,
    ) -> None:
        """
        Args:
            schedule: schedule of the run.
            settings: settings of the run.
            parallel: the processes that train together.
            keeping: saves checkpoints.
            seen: running sums and the best validation.
            controller: applies the rules; None if the schedule has none.
            log: metrics of the run.
            progress: shows results.
            task: task of the run.
            full: the full network.
            pace: which steps end an epoch (or step) of the schedule, and the batch of each stage.
            ending: whether the run has to end; a validation then ends without a result.
        """
        self.settings, self.parallel, self.keeping, self.seen = settings, parallel, keeping, seen
        self.controller, self.log, self.progress = controller, log, progress
        self.metrics: dict[str, float] = {}
        self._task, self._size = task, image_size(full) if settings.validate_full else None
        self._full: FullSize | None = None
        self._pace, self._ending = pace, ending
        self._losses = any(isinstance(rule, Plateau) for rule in schedule.rules)
        self._higher = all(rule.higher for rule in _gains(schedule))

    def enter(self, running: RunningStage) -> None:
        """Prepares the validation of a stage at the full image size, before the stage is wrapped."""
        self._full = None if running.search is not None else FullSize.of(running, self._task, self._size)

    def over(self, active: Active, step: int) -> bool:
        """Returns whether a stage, or the search at its beginning, is over after `step` steps of the run."""
        if self.controller is not None and active.running.search is None:
            return self.controller.stage > active.index
        return step >= active.stop

    def wants_loss(self, active: Active, step: int) -> bool:
        """Returns whether a rule decides by the loss of this step, so that the host has to read it at once."""
        return self.controller is not None and self._losses and self._pace.unit(active.index, step) is not None

    def trained(self, active: Active, step: int, loss: float | None) -> None:
        """Tells the rules that a step is done, with its loss if `wants_loss` asked for it."""
        unit = self._pace.unit(active.index, step)
        if self.controller is not None and unit is not None:
            self.controller.observe(unit, loss=loss if self._losses else None)

    def due(self, active: Active, step: int) -> bool:
        """Returns whether a validation is due after `step` steps of the run."""
        every = self.settings.validate_every
        ends = self.over(active, step) and active.running.search is None  # the stage continues after its search
        due = step > 0 and (ends or (every is not None and step % every == 0))
        return due and self.seen.validated != step and active.task.validation is not None

    def look(self, active: Active, step: int) -> None:
        """Validates if it is due, and passes the result to the rules.

        Each part is done once per step, however often this is called: a run that was stopped in between does the rest
        when it resumes.
        """
        over = self.over(active, step)
        if self.due(active, step):
            self._validate(active, step)
        unit = self._pace.unit(active.index, step)
        if unit is not None and (news := self.seen.news()) is not None:
            if self.controller is not None and not over:
                self.controller.observe(unit, validation=news[0], seconds=news[1])

    def _validate(self, active: Active, step: int) -> None:
        try:
            found = self._found(active)
        except CheckError as error:
            raise CheckError(f"step {step}: {error}") from error
        if found is None:
            return
        self.metrics, self.seen.validated = found, step
        value = score(found, self._higher)
        if value is not None and math.isfinite(value):
            # Only the rank that writes has a clock, the others read 0; all ranks must take the same decision.
            clock = torch.tensor(self.log.seconds, dtype=torch.float64, device=self.parallel.device)
            self.seen.tell(value, float(self.parallel.mean(clock)) * self.parallel.world)
        self.log.write("validation", step, {**found, "stage": active.index})
        self.progress.validated(found)
        if self.seen.is_best(found):
            self.keeping.save(active.running, active.module, step)
            self.keeping.mark_best(step, self.seen.best)

    def _found(self, active: Active) -> dict[str, float] | None:
        """The results at the image size of the stage and at that of the full network; None if a signal came."""
        running, own = active.running, self._pace.batches[active.index]
        found = evaluate(
            active.module, active.task, running.inputs, running.ema, self.parallel, self.settings,
            self._ending.later, batch=own,
        )  # fmt: skip
        self._ending.settle()
        if found is not None and self._full is not None:
            more = self._full.evaluate(
                running, active.module, self.parallel, self.settings, self._ending.later,
                batch=min(own, self._pace.batches[-1]),  # images as large as in the last stage
            )  # fmt: skip
            self._ending.settle()
            found = None if more is None else found | more
        return found

    def check(self, active: Active, step: int, sample: Callable[[], Any]) -> None:
        """Checks that outputs are finite where a stage or the run ends, unless a validation of this step has done so.

        Args:
            active: the stage.
            step: steps of the run.
            sample: makes samples at the full image size, the same on all ranks.

        Raises:
            CheckError: outputs are not finite, on every rank.
        """
        if self.seen.validated == step:
            return
        running = active.running
        try:
            check_outputs(
                active.module, active.task, sample(), running.inputs, running.ema, self.parallel, self.settings
            )
        except CheckError as error:
            raise CheckError(f"step {step}: {error}") from error


def never_told(task: Task, schedule: Schedule, settings: Settings) -> tuple[str, ...]:
    """Returns notes about rules of a schedule that can never end a stage.

    Raises:
        InputError: one rule needs a metric that rises, another a metric that falls.
    """
    gains = _gains(schedule)
    if len({rule.higher for rule in gains}) > 1:
        raise InputError(
            "rules gain: some with higher true and some with higher false, but a run has one metric; use one kind"
        )
    if gains and (task.validation is None or settings.validate_every is None):
        return ("rule gain of the plan never ends a stage: it needs validation samples, and train.validate_every",)
    return ()


def _gains(schedule: Schedule) -> list[Gain]:
    return [rule for rule in schedule.rules if isinstance(rule, Gain)]


def evaluate(
    module: nn.Module,
    task: Task,
    inputs: Callable[[int], dict[str, torch.Tensor]],
    ema: Averages | None,
    parallel: Parallel,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
    *,
    batch: int | None = None,
) -> dict[str, float] | None:
    """Validates the weights, and each averaged copy under the same names prefixed by `ema-DECAY/`.

    Afterwards the module is in train mode, with its weights, buffers and all random states unchanged.

    Args:
        batch: samples per call, over all ranks; None takes that of the settings.

    Returns:
        Metrics by name; None if `stop` ended the validation.

    Raises:
        CheckError: outputs are not finite.
    """

    def call(batch: Any) -> Any:
        with autocast(parallel.device, settings):
            return task.run(module, batch, **inputs(samples_in(batch)))

    def seen() -> dict[str, float] | None:
        return validate(
            call, task, batch=max((batch or settings.batch) // parallel.world, 1), rank=parallel.rank,
            world=parallel.world, mean=parallel.mean, device=parallel.device, stop=stop,
        )  # fmt: skip

    module.eval()
    try:
        with torch.no_grad():
            with blaming(module, "the network"):
                found = seen()
            for decay in ema.decays if ema is not None else ():
                assert ema is not None
                if decay not in settings.ema and settings.ema:  # that of a search
                    continue
                if found is None:
                    break
                with averaged(module, ema, decay), blaming(module, f"the averaged weights {decay!r}"):
                    own = seen()
                found = None if own is None else {**found, **{f"ema-{decay!r}/{name}": v for name, v in own.items()}}
    finally:
        module.train()
    return found


def check_outputs(
    module: nn.Module,
    task: Task,
    batch: Any,
    inputs: Callable[[int], dict[str, torch.Tensor]],
    ema: Averages | None,
    parallel: Parallel,
    settings: Settings,
) -> None:
    """Runs a batch in eval mode, with the weights and with each averaged copy; random states stay as they are.

    Args:
        module: the network of a stage, in train mode.
        task: the task of the stage.
        batch: samples at the full image size, the same on all ranks.
        inputs: makes further keyword inputs from the number of samples.
        ema: averaged copies; None if there are none.
        parallel: the processes that train together.
        settings: settings of the run.

    Raises:
        CheckError: outputs are not finite, on every rank.
    """
    given = task.fit(pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(parallel.device), batch))

    def look() -> None:
        with autocast(parallel.device, settings):
            outputs = task.run(module, given, **inputs(samples_in(given)))
            odd = odd_outputs(outputs, task.loss(outputs, given))
        if parallel.any(bool(odd)):
            raise NotFiniteError(f"for {samples_in(given)} training samples")

    module.eval()
    try:
        with torch.no_grad(), kept_random_states():
            with blaming(module, "the network"):
                look()
            for decay in ema.decays if ema is not None else ():
                assert ema is not None
                with averaged(module, ema, decay), blaming(module, f"the averaged weights {decay!r}"):
                    look()
    finally:
        module.train()


@contextlib.contextmanager
def averaged(module: nn.Module, ema: Averages, decay: float) -> Iterator[None]:
    """Gives the module averaged weights inside the context, and its own weights back afterwards."""
    own = module.state_dict(keep_vars=True)
    kept = {name: tensor.detach().clone() for name, tensor in own.items()}
    with torch.no_grad():
        for name, value in ema.tensors[decay].items():
            own[name].copy_(value)
        try:
            yield
        finally:
            for name, value in kept.items():
                own[name].copy_(value)


class Seen:
    """Running sums that a checkpoint holds, so that a resumed run writes the same metrics.

    Attributes:
        best: best value of `score` so far; None before the first.
        skipped: number of steps skipped in the whole run.
        skipped_samples: number of samples in them, over all ranks.
        skipped_at: the first of these steps.
        last: loss of the last step that the host has read; None before the first.
        norm: norm of the gradient of that step.
        validated: step of the last complete validation; None before the first.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.skipped = self.skipped_samples = 0
        self.skipped_at: tuple[int, ...] = ()
        self.last: float | None = None
        self.norm: float | None = None
        self.validated: int | None = None
        self._sum, self._count = 0.0, 0
        self._news: tuple[float, float] | None = None

    def add(self, loss: float, skipped: bool, norm: float) -> None:
        """Adds the loss of a step, and the norm of its gradient."""
        self.last, self.norm = loss, norm
        if skipped:
            self.skipped += 1
        else:
            self._sum, self._count = self._sum + loss, self._count + 1

    def left_out(self, step: int, samples: int) -> None:
        """Counts the samples of a step that was skipped."""
        self.skipped_samples += samples
        self.skipped_at = (*self.skipped_at, step)[:SHOWN]

    def take(self) -> float | None:
        """Returns the mean loss since the last call; None if no step was taken."""
        mean = self._sum / self._count if self._count else None
        self._sum, self._count = 0.0, 0
        return mean

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Returns whether this validation is the best so far, by top-1 accuracy, or by loss where there is none.

        The better of trained and averaged weights counts.
        """
        value = score(metrics)
        if value is None or not math.isfinite(value) or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    def tell(self, value: float, seconds: float) -> None:
        """Keeps the result of a validation until it is passed to the rules."""
        self._news = value, seconds

    def news(self) -> tuple[float, float] | None:
        """Returns the last validation and the seconds of the run at that time, once; None if already returned."""
        news, self._news = self._news, None
        return news

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, JSON data."""
        return {
            "best": self.best, "skipped": self.skipped, "sum": self._sum, "count": self._count,
            "validated": self.validated, "news": self._news, "skipped_samples": self.skipped_samples,
            "skipped_at": list(self.skipped_at),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best, self.skipped = state["best"], int(state["skipped"])
        self.skipped_samples = int(state.get("skipped_samples", 0))
        self.skipped_at = tuple(int(step) for step in state.get("skipped_at", ()))
        self._sum, self._count = float(state["sum"]), int(state["count"])
        self.validated, news = state.get("validated"), state.get("news")
        self._news = None if news is None else (float(news[0]), float(news[1]))


def score(metrics: Mapping[str, float], higher: bool = True) -> float | None:
    """Returns one number for a validation: top-1 accuracy, or the negative loss; None if there is neither.

    Metrics at the full image size count where there are any, so that stages are compared at one size.

    Args:
        metrics: results of a validation.
        higher: whether higher is better; if False, the loss itself is returned.
    """
    full = {name: value for name, value in metrics.items() if name.startswith(PREFIX)}
    counted = full or metrics
    accuracies = [value for name, value in counted.items() if name.rpartition("/")[2] == "top1"]
    losses = [value for name, value in counted.items() if name.rpartition("/")[2] == "loss"]
    if not higher:
        return min(losses, default=None)
    return max(accuracies or [-loss for loss in losses], default=None)
