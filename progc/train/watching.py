"""What a run is judged by on its way: validation, the best checkpoint, and the rules by which stages end.

Validation of a stage, with the trained weights and with averaged ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from progc.data.loading import validate
from progc.data.task import Task
from progc.errors import InputError
from progc.lift.averages import Averages
from progc.schedule.controlling import Controller
from progc.schedule.rules import Gain
from progc.schedule.schedule import Schedule
from progc.train.keeping import Keeping
from progc.train.metrics import Metrics
from progc.train.parallel import Parallel
from progc.train.progress import Progress
from progc.train.settings import Settings
from progc.train.stepping import Active, autocast, samples_in


class Watch:
    """Validates where it is time to, keeps the best, and tells the rules.

    Attributes:
        metrics: of the last whole validation; empty before the first.
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
        per_unit: int,
        left: Callable[[], bool],
    ) -> None:
        """
        Args:
            per_unit: optimizer steps of what the schedule counts.
            left: whether the run is to end, the same on all ranks: validation is left then, without a result.
        """
        self.settings, self.parallel, self.keeping, self.seen = settings, parallel, keeping, seen
        self.controller, self.log, self.progress = controller, log, progress
        self.metrics: dict[str, float] = {}
        self._per_unit, self._left = per_unit, left
        self._higher = all(rule.higher for rule in _gains(schedule))

    def over(self, active: Active, step: int) -> bool:
        """Whether a stage is over when `step` steps of the run are done."""
        if self.controller is not None:
            return self.controller.stage > active.index
        return step >= active.stop

    def trained(self, step: int, loss: float) -> None:
        """Tells the rules the loss of a step."""
        if self.controller is not None and step % self._per_unit == 0:
            self.controller.observe(step // self._per_unit, loss=loss)

    def look(self, active: Active, step: int) -> None:
        """Validates if it is time to, and tells the rules.

        For one and the same step all of it is done once, however often this is called: a run that was ended in the
        midst of it, and goes on, does the rest.
        """
        over, every = self.over(active, step), self.settings.validate_every
        due = step > 0 and (over or (every is not None and step % every == 0))
        if due and self.seen.validated != step and active.task.validation is not None:
            self._validate(active, step)
        if step % self._per_unit == 0 and (news := self.seen.news()) is not None:
            if self.controller is not None and not over:
                self.controller.observe(step // self._per_unit, validation=news[0], seconds=news[1])

    def _validate(self, active: Active, step: int) -> None:
        running = active.running
        found = evaluate(
            active.module, active.task, running.inputs, running.ema, self.parallel, self.settings, self._left
        )
        if found is None:
            return
        self.metrics, self.seen.validated = found, step
        value = score(found, self._higher)
        if value is not None and math.isfinite(value):
            # The clock is that of the rank that writes; the others say 0, and all have to decide alike.
            clock = torch.tensor(self.log.seconds, dtype=torch.float64, device=self.parallel.device)
            self.seen.tell(value, float(self.parallel.mean(clock)) * self.parallel.world)
        self.log.write("validation", step, {**found, "stage": active.index})
        self.progress.validated(found)
        if self.seen.is_best(found):
            self.keeping.save(running, active.module, step)
            self.keeping.mark_best(step, self.seen.best)


def never_told(task: Task, schedule: Schedule, settings: Settings) -> tuple[str, ...]:
    """Rules of a schedule that will never have anything to say, for people.

    Raises:
        InputError: one rule wants a validation that rises, another one that falls.
    """
    gains = _gains(schedule)
    if len({rule.higher for rule in gains}) > 1:
        raise InputError("rules gain: some with higher true and some false; a run tells them one number, give one kind")
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
) -> dict[str, float] | None:
    """What `validate` says of the weights, and of each average under the same names with `ema-DECAY/` before them.

    The module is in train mode again behind it, its weights, buffers and all random numbers as they were. None where
    `stop` ended it.
    """

    def call(batch: Any) -> Any:
        with autocast(parallel.device, settings):
            return task.run(module, batch, **inputs(samples_in(batch)))

    def seen() -> dict[str, float] | None:
        return validate(
            call, task, batch=max(settings.batch // parallel.world, 1), rank=parallel.rank, world=parallel.world,
            mean=parallel.mean, device=parallel.device, stop=stop,
        )  # fmt: skip

    module.eval()
    try:
        with torch.no_grad():
            found = seen()
            for decay in ema.decays if ema is not None else ():
                assert ema is not None
                if found is None:
                    break
                with averaged(module, ema, decay):
                    own = seen()
                found = None if own is None else {**found, **{f"ema-{decay!r}/{name}": v for name, v in own.items()}}
    finally:
        module.train()
    return found


@contextlib.contextmanager
def averaged(module: nn.Module, ema: Averages, decay: float) -> Iterator[None]:
    """The module computes with averaged weights inside, and has its own again behind it."""
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
    """Sums that must not begin anew when a run goes on: its metrics would then be others.

    Attributes:
        best: the best value so far of what `is_best` looks at; None before the first.
        skipped: steps that were left out, in the whole run.
        validated: step of the last whole validation; None before the first.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.skipped = 0
        self.validated: int | None = None
        self._sum, self._count = 0.0, 0
        self._news: tuple[float, float] | None = None

    def add(self, loss: float, skipped: bool) -> None:
        """One step."""
        if skipped:
            self.skipped += 1
        else:
            self._sum, self._count = self._sum + loss, self._count + 1

    def take(self) -> float | None:
        """Mean loss since the last call; None if no step was taken."""
        mean = self._sum / self._count if self._count else None
        self._sum, self._count = 0.0, 0
        return mean

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether this validation is the best so far: by top-1 accuracy, or by loss where there is none.

        Averaged weights count like the trained ones: the better of them.
        """
        value = score(metrics)
        if value is None or not math.isfinite(value) or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    def tell(self, value: float, seconds: float) -> None:
        """Keeps what a validation says until the schedule's rules are told."""
        self._news = value, seconds

    def news(self) -> tuple[float, float] | None:
        """The last validation and the run's seconds then, if that was not asked for before."""
        news, self._news = self._news, None
        return news

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "best": self.best, "skipped": self.skipped, "sum": self._sum, "count": self._count,
            "validated": self.validated, "news": self._news,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.skipped = state["best"], int(state["skipped"])
        self._sum, self._count = float(state["sum"]), int(state["count"])
        self.validated, news = state.get("validated"), state.get("news")
        self._news = None if news is None else (float(news[0]), float(news[1]))


def score(metrics: Mapping[str, float], higher: bool = True) -> float | None:
    """One number for a validation: top-1 accuracy, or the negative loss where there is none; None if there is neither.

    Args:
        higher: whether higher is to be better; if not, it is the loss.
    """
    accuracies = [value for name, value in metrics.items() if name.rpartition("/")[2] == "top1"]
    losses = [value for name, value in metrics.items() if name.rpartition("/")[2] == "loss"]
    if not higher:
        return min(losses, default=None)
    return max(accuracies or [-loss for loss in losses], default=None)
