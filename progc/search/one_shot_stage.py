"""One stage of a one-shot search: grow, cut out candidates, train, evaluate, choose, take the winner; and its settings.

`progc.search.one_shot` calls the steps in order.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.optim import AdamW, Optimizer

from progc.data.regularisation import Regularisation
from progc.data.task import Task
from progc.errors import InputError, NotLosslessError, did_you_mean
from progc.ir.program import Program
from progc.lift.averages import Averages
from progc.passes.grow_depth import GrowDepth
from progc.pipeline.base import Pass
from progc.pipeline.manager import apply, hand_over, run
from progc.ranks.agreeing import agreed
from progc.schedule.point import Point
from progc.schedule.schedule import Candidate, Decision
from progc.schedule.space import Index, Space
from progc.search.candidates import supernet
from progc.search.elastic import check_finite, draws, losses, on_device, timed_losses, train_step
from progc.search.power_law import FitChoice, chosen, exchange_rate, published
from progc.search.supernet import Nesting, SubNetwork, Supernet

Progress = Callable[[str], None]
"""Called with a line that says how far a search is."""

BeforeStep = Callable[[int], None]
"""Called with the number of the next training step."""

FAST = 0.998
"""Decay of the EMA of the weights that candidates are evaluated with."""


@dataclasses.dataclass
class StageSearch:
    """The search of one stage: `begin`, `train`, `choose`, `finish`, `decision`, called in this order.

    Attributes:
        steps: number of training steps so far.
        training, training_cpu: seconds of the training steps: wall time and processor time.
        optimizer, ema: optimizer and averages of the network.
        growth: how new blocks were made.
        marks: steps at which candidates are evaluated.
        losses: losses, indexed by evaluation, candidate and batch.
        times: time of a step of each candidate.
    """

    space: Space
    task: Task
    stage: int
    batch: int
    seed: int
    mode: str
    given: OneShotSettings
    done: int
    before_step: BeforeStep | None
    progress: Progress | None
    steps: int = 0
    training: float = 0.0
    training_cpu: float = 0.0
    optimizer: Optimizer | None = None
    ema: Averages | None = None
    growth: str = "none"
    marks: tuple[int, ...] = ()
    losses: list[list[list[float]]] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=list)

    def begin(
        self,
        program: Program,
        current: Index | None,
        places: Sequence[Index],
        optimizer: Optimizer | None,
        ema: Averages | None,
        regularisation: Regularisation | None,
    ) -> None:
        """Grows the network to the largest candidate, and cuts the candidates out."""
        self.fill()
        program = program.complete()
        trained = [tensor for _, tensor in program.parameters() if tensor.requires_grad]
        self.optimizer = optimizer or AdamW(trained, lr=self.own.lr, weight_decay=self.own.weight_decay)
        self.ema = Averages(program) if ema is None and self.reference else ema
        if current is not None:
            program = self._grown(program, self.space.point(supernet(places)), self.space.point(current))
        if regularisation is not None:
            from progc.schedule.regularising import passes_for

            program = run(program, passes_for(regularisation, program), verify=False)[0]
        self.cut_out(program, current, places)

    def fill(self) -> None:
        """Completes the settings by what the mode and the number of samples say."""
        samples = self.task.validation if self.given.validation else self.task.samples
        self.own = self.given.filled(self.mode, len(samples or ()) // self.batch)
        self.times_by_backward: list[float] = []

    def cut_out(self, program: Program, current: Index | None, places: Sequence[Index]) -> None:
        """Cuts the candidates out of the network that holds them all."""
        self.places = places
        base = None if current is None or self.reference else self.space.point(current).depths
        nesting: Nesting = "deepest" if self.reference else "grown"
        points = [self.space.point(place) for place in places]
        self.supernet = Supernet(program, points, base=base, nesting=nesting, own_statistics=not self.reference)

    @property
    def reference(self) -> bool:
        """Whether the procedure of the paper is followed."""
        return self.mode == "reference"

    def _grown(self, program: Program, largest: Point, before: Point) -> Program:
        # By default position tables keep their present size, and the tables of every candidate are resampled from
        # them. A candidate that keeps the size then computes the same as the network before.
        target = largest if self.reference else dataclasses.replace(largest, resolution=None)
        init = self.own.growth or "identity"
        passes = target.growing(before, {"depth": init})
        if not passes:
            return program
        try:
            grown, self.growth = self._apply(program, passes), init
        except NotLosslessError:
            if self.given.growth is not None:
                raise
            grown = self._apply(program, target.growing(before, {"depth": "interpolate"}))
            self.growth = "interpolate, because new blocks cannot be exact identities in this network"
        return grown

    def _apply(self, program: Program, passes: Sequence[Pass]) -> Program:
        if self.reference:  # every tensor from the slow average, not only those of new blocks
            passes = [
                dataclasses.replace(item, source="all")
                if isinstance(item, GrowDepth) and item.init == "mogrow"
                else item
                for item in passes
            ]
        grown = apply(program, passes, optimizer=self.optimizer, ema=self.ema)
        self._forget()
        return grown

    def _forget(self) -> None:
        """As in AutoProg, a change of the network resets the optimizer's state."""
        if self.reference and self.optimizer is not None:
            self.optimizer.state.clear()

    # -- training and evaluation ---------------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains the supernet for S epochs, and evaluates all candidates at `marks`."""
        assert self.optimizer is not None
        per_epoch = len(self.task.samples) // self.batch
        total, marks = self.own.marks(max(per_epoch, 1))
        self.marks = marks
        self.draw()
        averages = [self.ema] if self.ema is not None else []
        self.average = self._average(averages, total)
        for step, (member, item) in enumerate(self._steps(total, per_epoch)):
            if step in marks:
                self.evaluate()
            start, start_cpu = time.perf_counter(), time.process_time()
            if self.before_step is not None:
                self.before_step(self.done + step)
            where = f"stage {self.stage}, candidate {member.point}, step {step}"
            train_step(
                self.supernet, member, self.task, item, self.optimizer,
                averages=averages, clip=self.own.clip, where=where, stage=self._row,
            )  # fmt: skip
            self.training += time.perf_counter() - start
            self.training_cpu += time.process_time() - start_cpu
            self.steps += 1
        if total in marks:
            self.evaluate()

    def draw(self) -> None:
        """Draws the batches that all candidates are evaluated on."""
        assert self.own.batches is not None
        source = self.task.batches(
            self.batch, seed=self.seed + 7_919, epoch=self.stage, count=self.own.batches, validation=self.own.validation
        )
        self.evaluated = [on_device(item, self.supernet) for item in source]

    def _steps(self, total: int, per_epoch: int) -> Iterator[tuple[SubNetwork, Any]]:
        step = 0
        while step < total:
            epoch = self.done // max(per_epoch, 1) + step // max(per_epoch, 1)
            count = min(per_epoch, total - step) if per_epoch else None
            order = draws(self.seed, epoch, count or 0, len(self.supernet.members))
            batches = self.task.batches(self.batch, seed=self.seed, epoch=epoch, count=count)
            for number, item in zip(order, batches, strict=True):
                yield self.supernet.members[number], item
                step += 1

    @property
    def _row(self) -> int | None:
        sid = self.supernet.program.sid
        return None if sid is None else min(self.stage, sid.stages - 1)

    def decay(self, steps: int) -> float:
        """Returns the decay of the average that candidates are evaluated with."""
        if self.reference and self.ema is not None:
            return self.own.decay or min(self.ema.decays)
        # An average over more steps than the search has would still contain the weights from before it.
        return self.own.decay if self.own.decay is not None else min(FAST, max(0.0, 1 - 8 / max(steps, 1)))

    def _average(self, averages: list[Averages], steps: int) -> tuple[Averages, float]:
        """The averages, and the one of their decays, that candidates are evaluated with."""
        decay = self.decay(steps)
        if self.reference and self.ema is not None:
            return self.ema, decay
        if self.ema is not None and decay in self.ema.decays:
            return self.ema, decay
        averages.append(Averages(self.supernet.program, [decay]))
        return averages[-1], decay

    def evaluate(self) -> None:
        """Evaluates all candidates on the same batches, with averaged weights."""
        average, decay = self.average
        if decay not in average.decays:
            raise InputError(
                f"one-shot search: decay: expected one of the decays of the EMA, {list(average.decays)}, got {decay}"
            )
        source = {**self.supernet.program.tensors, **average.tensors[decay]}
        backward = self.reference and self.own.time == "measured" and not self.times_by_backward
        found = []
        for member in self.supernet.members:
            tensors = member.values(source, self.buffers_of(member))
            if backward:
                own, seconds = timed_losses(member, self.task, self.evaluated, tensors, stage=self._row)
                self.times_by_backward.append(seconds)
            else:
                own = losses(
                    member, self.task, self.evaluated, tensors, train=self.reference, stage=self._row
                )  # fmt: skip
            where = f"stage {self.stage}, candidate {member.point}, evaluation at step {self.steps}"
            check_finite(statistics.fmean(own), where, "lower the learning rate, or check the data")
            found.append(own)
        self.losses.append(found)
        if self.progress is not None:
            self.progress(f"stage {self.stage}: step {self.steps}, lowest loss {min(map(statistics.fmean, found)):.4g}")

    def buffers_of(self, member: SubNetwork) -> Mapping[str, torch.Tensor]:
        """Returns the present buffers of a sub-network."""
        return member.statistics

    def choose(self) -> FitChoice:
        """Returns the choice, the same on all ranks: losses and times are those of rank 0."""
        told = agreed(f"the network of stage {self.stage}", lambda: {"losses": self.losses, "times": self._seconds()})
        self.losses, self.times = told["losses"], told["times"]
        per_member = list(zip(*self.losses, strict=True))  # [member][evaluation][batch]
        if self.reference:
            return published([statistics.fmean(map(statistics.fmean, own)) for own in per_member], self.times)
        over_time = [[statistics.fmean(batches) for batches in zip(*own, strict=True)] for own in per_member]
        course = [statistics.fmean(map(statistics.fmean, found)) for found in self.losses]
        usable = min(course) > 0
        rate = exchange_rate(course, [self.done + mark for mark in self.marks]) if usable else None
        return chosen(over_time, self.times, rate)

    def _seconds(self) -> list[float]:
        from progc.schedule.costing import predicted_seconds
        from progc.schedule.timing import step_times

        if self.own.time == "predicted":
            return [predicted_seconds(member.program, batch=self.batch) for member in self.supernet.members]
        if self.times_by_backward:
            return self.times_by_backward
        programs = [member.program for member in self.supernet.members]
        return step_times(programs, self.task, batch=self.batch, seed=self.seed, stages=[self._row] * len(programs))

    # -- the winner ----------------------------------------------------------------------------------------------------

    def finish(self, place: Index, point: Point, current: Index | None) -> Program:
        """Returns the winner's network; optimizer and averages are re-pointed to it."""
        member, after = self.winner(place, point, current)
        before, held = self.supernet.program, {"optimizer": self.optimizer, "ema": self.ema}
        hand_over(before, after, [member.lift], **held, correct_rates=False)  # type: ignore[arg-type]
        self._forget()
        return after

    def winner(self, place: Index, point: Point, current: Index | None) -> tuple[SubNetwork, Program]:
        """Returns the winner, and its network with the weights and averages that it has in the supernet."""
        member = self.supernet.members[self.places.index(place)]
        if self.reference and self.losses and place == supernet(self.places):
            self._from_slow_average()
        elif self.reference and current is not None:
            # AutoProg counts the layers that stay from the previous network, not from the smallest candidate.
            member = self.supernet.sub_network(point, base=self.space.point(current).depths)
        return member, self.supernet.recycled(member, self.ema, self.buffers_of(member))

    @torch.no_grad()
    def _from_slow_average(self) -> None:
        """As in AutoProg, a winner that is the whole supernet continues from its slowest average."""
        assert self.ema is not None
        for name, value in self.ema.tensors[max(self.ema.decays)].items():
            self.supernet.program.tensors[name].copy_(value)

    def decision(self, points: Sequence[Point], choice: FitChoice, seconds: float) -> Decision:
        """Returns all candidates, their scores and the choice as data."""
        means = [[statistics.fmean(own) for own in found] for found in self.losses]
        columns = list(zip(*means, strict=True)) or [()] * len(points)
        overall = [statistics.fmean(own) if own else float("nan") for own in columns]
        candidates = []
        for number, point in enumerate(points):
            scores: dict[str, float] = {}
            if self.losses:
                scores = {"loss": overall[number], "time": self.times[number], "noise": choice.noise[number]}
                scores |= {f"loss at step {mark}": own for mark, own in zip(self.marks, columns[number], strict=True)}
            ranks = {
                name: 1.0 + sum(other < own for other in column)
                for name, column in (("loss", overall), ("time", self.times))
                for own in column[number : number + 1]
                if self.losses
            }
            candidates.append(Candidate(point, scores, ranks, choice.totals[number]))
        settings = {
            **dataclasses.asdict(self.own),
            "steps": self.steps,
            "alpha": choice.alpha,
            "growth": self.growth,
        }
        if self.losses:
            settings["decay"] = self.average[1]
        reason = f"{points[choice.winner]}: {choice.reason}"
        return Decision(self.stage, tuple(candidates), choice.winner, reason, settings, seconds)


Time = Literal["predicted", "measured"]


@dataclasses.dataclass(frozen=True)
class OneShotSettings:
    """Settings of the one-shot search; what is None depends on the mode (`reference` or `default`).

    Attributes:
        epochs: S, number of epochs that the supernet trains at each stage, above 0. They count as part of the stage.
        batches: number of batches that every candidate is evaluated on. Reference: 50. Default: 8, or all if fewer.
        evaluations: number of evaluations during the last epoch of the search. Reference: 5. Default: 3.
        time: the time of a step: `predicted` from counted FLOPs (repeatable), or `measured`. Reference: measured.
            Default: predicted.
        validation: whether candidates are evaluated on validation samples instead of training samples.
        decay: decay of the EMA that is evaluated. Reference: 0.998. Default: 0.998, or less in a short search.
        growth: how new blocks are made (init of grow-depth). Reference: mogrow. Default: identity, or interpolate if
            no exact identity exists.
        lr, weight_decay: learning rate and weight decay of AdamW, if no optimizer is given.
        clip: largest norm of the gradients; None: not clipped.
        between: number of epochs that `search` trains the winner after each search.

    Raises:
        InputError: a value out of range.
    """

    epochs: float = 2.0
    batches: int | None = None
    evaluations: int | None = None
    time: Time | None = None
    validation: bool = False
    decay: float | None = None
    growth: str | None = None
    lr: float = 1e-3
    weight_decay: float = 0.05
    clip: float | None = 1.0
    between: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any] | OneShotSettings | None) -> OneShotSettings:
        """Makes settings from a mapping.

        Raises:
            InputError: an unknown key, or a value out of range.
        """
        if isinstance(given, OneShotSettings):
            return given
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given or {}:
            if name not in names:
                hint = did_you_mean(name, names) or f"; settings are {', '.join(names)}"
                raise InputError(f"one-shot search: unknown setting `{name}`{hint}")
        return cls(**(given or {}))

    def __post_init__(self) -> None:
        for name, least, words in (
            ("epochs", 0, "a number above 0"),
            ("batches", 0, "an integer above 0"),
            ("evaluations", 0, "an integer above 0"),
            ("lr", 0, "a number above 0"),
            ("clip", 0, "a number above 0, or None"),
            ("weight_decay", -1, "a number of at least 0"),
            ("between", -1, "a number of at least 0"),
        ):
            value = getattr(self, name)
            if value is None and name in ("batches", "evaluations", "clip"):
                continue
            whole = name in ("batches", "evaluations")
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not (value > least if least == 0 else value >= 0) or value == float("inf"):
                raise InputError(f"one-shot search: {name}: expected {words}, got {value!r}")
        if self.time not in (None, "predicted", "measured"):
            raise InputError(f"one-shot search: time: expected predicted or measured, got {self.time!r}")
        if self.growth not in (None, "identity", "interpolate", "mogrow", "stack", "random"):
            raise InputError(
                "one-shot search: growth: expected identity, interpolate, mogrow, stack or random, got "
                f"{self.growth!r}"
            )  # fmt: skip
        if self.decay is not None and not 0 <= self.decay < 1:
            raise InputError(f"one-shot search: decay: expected a number of at least 0 and below 1, got {self.decay!r}")

    def filled(self, mode: str, available: int) -> OneShotSettings:
        """Returns the settings with everything that depends on the mode.

        Args:
            mode: `reference` or `default`.
            available: number of batches that candidates can be evaluated on.
        """
        reference = mode == "reference"
        return dataclasses.replace(
            self,
            batches=self.batches or (50 if reference else max(1, min(8, available))),
            evaluations=self.evaluations or (5 if reference else 3),
            time=self.time or ("measured" if reference else "predicted"),
            growth=self.growth or ("mogrow" if reference else "identity"),
        )

    def marks(self, steps_per_epoch: int) -> tuple[int, tuple[int, ...]]:
        """Returns the number of steps of the search, and the steps before which candidates are evaluated.

        The number of steps among the latter means after all steps. The evaluations are spread over the last epoch, or
        over the whole search if it is shorter.
        """
        assert self.evaluations is not None
        steps = max(1, round(self.epochs * steps_per_epoch))
        window = min(steps, steps_per_epoch)
        if self.evaluations == 1:
            return steps, (steps,)
        gaps = self.evaluations - 1
        return steps, tuple(steps - window + window * i // gaps for i in range(self.evaluations))
