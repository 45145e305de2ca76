"""Searches that are part of training: at each boundary the network of the next stage is chosen with present weights.

`stages` runs a schedule of which some stages are open (`Stage.decided`). Where an open stage begins, `OnlineSearch`
decides:

- zero-shot: the candidates are made from the present weights as growth would make them, scored, and dropped. It takes
  no training step.
- one-shot: the network grows to the largest candidate, and for the first S epochs of the stage every step trains one
  sub-network of it (`SupernetStage`). Then the winner's part of weights, averages and optimizer state continues. The
  run has as many steps as without a search.

AutoProg (Li et al., CVPR 2022) and AutoProg-Zero (Li et al., 2024) search in this order; docs/training.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.ir.random_state import seeded
from progc.lift.averages import Averages, EmaLike
from progc.ranks.agreeing import rank
from progc.schedule.point import Point
from progc.schedule.running import RunningStage, SearchStage, trained
from progc.schedule.running import stages as decided_stages
from progc.schedule.schedule import Decision, Schedule
from progc.schedule.space import Index
from progc.schedule.stage import Stage
from progc.schedule.stage_programs import Grown, StagePrograms
from progc.search import zero_shot
from progc.search.candidates import one_shot_candidates, supernet
from progc.search.elastic import draws
from progc.search.one_shot_stage import OneShotSettings, StageSearch
from progc.search.supernet import SubNetwork
from progc.search.supernet_module import SupernetModule

if TYPE_CHECKING:
    from progc.lift.optimizers import Optimizers
    from progc.schedule.controlling import Controller

Context = Callable[[], contextlib.AbstractContextManager[Any]]


def stages(
    program: Program,
    schedule: Schedule,
    *,
    task: Task | None = None,
    batch: int | None = None,
    source: Program | None = None,
    optimizer: Optimizers | Callable[[nn.Module], Any] = None,
    ema: EmaLike | Sequence[EmaLike] | Callable[[nn.Module], Any] | None = None,
    module: nn.Module | None = None,
    inits: Mapping[str, str] | None = None,
    start: int = 0,
    total: int | None = None,
    controller: Controller | None = None,
    search: OnlineSearch | None = None,
) -> Iterator[RunningStage]:
    """Iterates over the stages of a schedule, growing the network between them, and decides its open stages.

    Arguments, results and errors are those of `progc.schedule.running.stages`, and:

    Args:
        task: samples and loss, for open stages.
        batch: samples per step of open stages that have no batch of their own.
        search: the search of open stages; None makes one from `task` and `batch`.

    Yields:
        The stages, ready to train. A one-shot search yields its stage twice: first with the supernet as module, for S
        epochs, then with the network that was chosen.

    Raises:
        InputError: the schedule has open stages, and there are no samples.
    """
    if schedule.open and search is None:
        if task is None or batch is None:
            raise InputError(
                f"stages: stage {schedule.open[0]} is decided in training by {schedule.strategy}, which needs samples; "
                "give task=Task(samples) and batch=..., or plan with decide=before"
            )
        search = OnlineSearch(program, schedule, task, batch=batch)
    return decided_stages(
        program, schedule, source=source, optimizer=optimizer, ema=ema, module=module, inits=inits, start=start,
        total=total, controller=controller, search=search,
    )  # fmt: skip


class OnlineSearch:
    """Decides the open stages of a schedule. Rank 0 decides; all ranks get its result.

    Attributes:
        batches: samples per step of each stage.
        trains: whether a decision takes training steps of its stage (one-shot).
    """

    def __init__(
        self,
        full: Program,
        schedule: Schedule,
        task: Task,
        *,
        batch: int,
        parts: int = 1,
        autocast: Context | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            full: the full program.
            schedule: the schedule, for strategy, mode, seed and settings.
            task: samples and loss of the run.
            batch: samples per step of stages that have no batch of their own.
            parts: into how many parts a batch is divided where it is evaluated.
            autocast: the context in which losses are evaluated; None evaluates in the precision of the weights.
            progress: called with a line that says how far a search is.

        Raises:
            InputError: a setting of the search is invalid.
        """
        self.full, self.task, self.parts = full, task, parts
        self.batches = schedule.batches(batch)
        self.autocast = autocast or contextlib.nullcontext
        self.progress = progress
        self.trains = schedule.strategy == "one-shot"
        self._resets = self.trains and schedule.mode == "reference"
        own = set(dataclasses.asdict(OneShotSettings()) if self.trains else _ZERO_SHOT)
        self._settings = {name: value for name, value in schedule.settings.items() if name in own}
        if self.trains:
            OneShotSettings.of(self._settings)
        else:
            zero_shot.ZeroShotOptions.of(self._settings, schedule.mode)

    def per_epoch(self, index: int) -> int:
        """Returns the optimizer steps per epoch of a stage."""
        return max(len(self.task.samples) // self.batches[index], 1)

    def length(self, index: int) -> int:
        """Returns how many optimizer steps of a stage a search takes."""
        if not self.trains:
            return 0
        return max(1, round(OneShotSettings.of(self._settings).epochs * self.per_epoch(index)))

    # -- zero-shot -------------------------------------------------------------------------------------------------

    def decide(
        self, programs: StagePrograms, schedule: Schedule, index: int, make: Callable[[Stage], Program]
    ) -> tuple[Stage, Decision]:
        """Decides a stage without training.

        Args:
            programs: the programs of the stages; unchanged afterwards.
            schedule: the schedule as far as it is decided.
            index: the stage.
            make: returns the program of the stage at another point, with the present weights.

        Returns:
            The stage at its new point, and the decision.
        """
        stage = schedule.stages[index]

        def at(point: Point) -> Program:
            return make(dataclasses.replace(stage, point=point))

        current = position(schedule, index - 1) if index else None
        place, decision = zero_shot.decide(
            self.full, schedule.space, current, self.task, stage=index, stages=len(schedule.stages),
            batch=self.batches[index],
            seed=schedule.seed, mode=schedule.mode, settings=self._settings, progress=self.progress, network=at,
        )  # fmt: skip
        return chosen_stage(self.full, schedule, index, schedule.space.point(place), self.batches[index]), decision

    # -- one-shot --------------------------------------------------------------------------------------------------

    def largest(self, schedule: Schedule, index: int) -> tuple[Stage, list[Index]]:
        """Returns the stage as the network that holds all candidates, and their positions.

        By default position tables keep the size that they have, and the tables of every candidate are resampled from
        them: a candidate that keeps the size then computes the same as the network before.
        """
        from progc.search.one_shot import stage_rates

        current = position(schedule, index - 1) if index else None
        places = one_shot_candidates(schedule.space, current, index, len(schedule.stages), schedule.mode)
        point = schedule.space.point(supernet(places))
        if schedule.mode != "reference" and index:
            point = dataclasses.replace(point, resolution=schedule.stages[index - 1].point.resolution)
        rates = stage_rates(self.full, len(schedule.stages), schedule.mode)[index]
        stage = schedule.stages[index]
        augmented = dataclasses.replace(
            schedule.stages[-1].regularisation if schedule.mode == "reference" else stage.regularisation,
            drop_path=rates.drop_path,
            dropout=rates.dropout,
        )
        return dataclasses.replace(stage, point=point, regularisation=augmented), places

    def inits(self, schedule: Schedule) -> list[dict[str, str]]:
        """Returns how new blocks of the supernet are made; the next one is used where one is not exact."""
        growth = OneShotSettings.of(self._settings).growth
        if schedule.mode == "reference" and growth in (None, "mogrow"):
            return [{"depth": "mogrow", "source": "all"}]
        if growth is not None:
            return [{"depth": growth}]
        return [{"depth": "identity"}, {"depth": "interpolate"}]

    def growth(self, schedule: Schedule) -> dict[str, str] | None:
        """Returns how new blocks are made at boundaries without a search: as published, or as the run says (None)."""
        return self.inits(schedule)[0] if self.trains and schedule.mode == "reference" else None

    def forget(self, optimizer: Optimizer | None) -> None:
        """Resets the optimizer's state after a boundary, as AutoProg does (`reference`)."""
        if self._resets and optimizer is not None:
            optimizer.state.clear()

    def begin(
        self, schedule: Schedule, index: int, places: Sequence[Index], program: Program, grown: str
    ) -> SupernetStage:
        """Cuts the candidates out of a program that holds them all.

        Args:
            schedule: the schedule as far as it is decided.
            index: the stage.
            places: positions of the candidates.
            program: the network of `largest`, with its weights.
            grown: how new blocks were made, for the record.
        """
        return SupernetStage(self, schedule, index, places, program, grown)


_ZERO_SHOT = {field.name for field in dataclasses.fields(zero_shot.ZeroShotOptions)} - {"mode"}


class SupernetStage(SearchStage):
    """The part of a stage in which a supernet trains and its candidates are compared.

    Attributes:
        module: the supernet; `choose` sets the sub-network that its next call runs.
        total: optimizer steps of the search.
        marks: steps of the search before which candidates are evaluated; `total` stands for its end.
        decay: decay of the averages that candidates are evaluated with.
    """

    def __init__(
        self,
        online: OnlineSearch,
        schedule: Schedule,
        index: int,
        places: Sequence[Index],
        program: Program,
        grown: str,
    ) -> None:
        self._online, self._schedule, self._index = online, schedule, index
        self._current = position(schedule, index - 1) if index else None
        micro = max(online.batches[index] // online.parts, 1)
        self._search = _Search(
            schedule.space, online.task, index, micro, schedule.seed, schedule.mode,
            OneShotSettings.of(online._settings), 0, None, None,
        )  # fmt: skip
        self._search.fill()
        self._search.growth = grown
        self._search.cut_out(program, self._current, places)
        self.module = SupernetModule(self._search.supernet)
        self._search.module = self.module
        self.total, self.marks = self._search.own.marks(online.per_epoch(index))
        if len(places) == 1:
            self.total, self.marks = 0, ()
        self._search.marks = self.marks
        self._added = False
        self._began = time.perf_counter()
        self._seconds = 0.0

    @property
    def decay(self) -> float:
        """See the class."""
        return self._search.decay(self.total)

    def twin(self) -> SupernetModule:
        """Returns another module over the same tensors, which a wrapper of several processes may change."""
        self._refresh()
        own = [self.module.buffers_of(number) for number in range(len(self.module.members))]
        return SupernetModule(self._search.supernet, own)

    @property
    def sizes(self) -> list[tuple[int, int] | None]:
        """Height and width of the images of each sub-network; None without images."""
        return [member.size for member in self.module.members]

    @property
    def programs(self) -> list[Program]:
        """The programs of the sub-networks."""
        return [member.program for member in self.module.members]

    def attach(self, optimizer: Optimizer | None, ema: Averages | None) -> Averages | None:
        """Takes the optimizer and averages that train with the supernet, and adds the average for evaluation.

        Returns:
            The averages to update after each step; new ones if none are given.
        """
        self._search.optimizer, self._search.ema = optimizer, ema
        if not self.total:
            return ema
        decay = self._search.own.decay if self._search.own.decay is not None else self.decay
        if ema is None:
            ema = Averages(self.module, [decay])
            self._added = True
        elif decay not in ema.decays:
            if self._search.reference and self._search.own.decay is None:
                decay = min(ema.decays)
            else:
                ema.add(decay, self.module)
                self._added = True
        self._search.ema = ema
        self._search.average = (ema, decay)
        return ema

    def choose(self, step: int) -> int:
        """Chooses the sub-network that step `step` of the search trains; the same on all ranks.

        Returns:
            Its index.
        """
        # Drawn for the whole search, from the stage and the seed alone: a resumed run draws the same.
        order = draws(self._schedule.seed, self._index, self.total, len(self.module.members))
        self.module.chosen = order[step]
        return order[step]

    def evaluate(self, step: int) -> None:
        """Evaluates all candidates if it is due before step `step` of the search; `total` is its end."""
        if step not in self.marks or len(self._search.losses) > self.marks.index(step):
            return
        self._refresh()
        start = time.perf_counter()
        chosen, training = self.module.chosen, self.module.training
        self._search.steps = step
        with self._online.autocast():
            if not hasattr(self._search, "evaluated"):
                self._search.draw()
            self._search.evaluate()
        if self._online.progress is not None:
            lowest = min(map(statistics.fmean, self._search.losses[-1]))
            # A run counts its stages from 1, and steps of a search are not those of the run.
            self._online.progress(
                f"search of stage {self._index + 1}: step {step} of {self.total}, lowest loss {lowest:.4g}"
            )
        self.module.chosen = chosen
        self.module.train(training)
        self._seconds += time.perf_counter() - start

    def _refresh(self) -> None:
        """Reads the module's tensors again: `.to(device)` replaces buffers."""
        self._search.supernet.program = trained(self._search.supernet.program, self.module)

    def finish(self) -> tuple[Stage, Decision, Program, Grown]:
        """Chooses the winner, and takes its weights, averages and optimizer state out of the supernet.

        Returns:
            The stage at its new point, the decision, the supernet's program, and the winner's with its lift.
        """
        from progc.search.power_law import FitChoice

        self._refresh()
        start = time.perf_counter()
        search, places = self._search, self._search.places
        for mark in self.marks if rank() == 0 else ():
            self.evaluate(mark)
        points = [self._schedule.space.point(place) for place in places]
        self.module.chosen = None
        if len(places) == 1:
            choice = FitChoice(0, 0.0, (0.0,), (0.0,), "the only candidate, so no search was needed")
        else:
            with seeded(self._schedule.seed * 1_000_003 + self._index):
                choice = search.choose()
        winner = places[choice.winner]
        member, after = search.winner(winner, points[choice.winner], self._current)
        seconds = self._seconds + time.perf_counter() - start
        decision = search.decision(points, choice, seconds)
        batch = self._online.batches[self._index]
        stage = chosen_stage(self._online.full, self._schedule, self._index, points[choice.winner], batch)
        return stage, decision, search.supernet.program, Grown(after, (member.lift,), (), lossless=False)

    def release(self) -> None:
        """Removes the average that only the search needed, once everything is handed over."""
        if self._added and self._search.ema is not None and len(self._search.ema.decays) > 1:
            self._search.ema.remove(self._search.average[1])

    @property
    def owns_averages(self) -> bool:
        """Whether the averages were made for the search alone."""
        return self._added and self._search.ema is not None and len(self._search.ema.decays) == 1

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs besides tensors, JSON data."""
        search = self._search
        return {
            "losses": search.losses, "times": search.times_by_backward, "growth": search.growth,
            "seconds": self._seconds,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._search.losses = [list(map(list, found)) for found in state["losses"]]
        self._search.times_by_backward = list(state["times"])
        self._search.growth = str(state["growth"])
        self._seconds = float(state["seconds"])


class _Search(StageSearch):
    """A stage's search over a module that holds the present buffers of the sub-networks."""

    module: SupernetModule

    def buffers_of(self, member: SubNetwork) -> Mapping[str, torch.Tensor]:
        for number, own in enumerate(self.module.members):
            if own is member:
                return self.module.buffers_of(number)
        return member.statistics  # the published procedure cuts it out again


def chosen_stage(full: Program, schedule: Schedule, index: int, point: Point, batch: int) -> Stage:
    """Returns a stage at the point that a search chose, with the regularisation and the cost of that network.

    Args:
        full: the full program.
        schedule: the schedule; the last stage has the final strengths.
        index: the stage.
        point: its new point.
        batch: samples per step of the stage, for the cost.
    """
    from progc.analysis.costs.counting import NotCounted
    from progc.schedule.costing import counted_stages
    from progc.schedule.regularising import ramp, sizes_of

    stage = schedule.stages[index]
    points = [point if own.index == index else own.point for own in schedule.stages]
    strengths = ramp(len(points), schedule.stages[-1].regularisation, schedule.mode, sizes=sizes_of(points))
    made = dataclasses.replace(stage, point=point, regularisation=strengths[index], cost=None)
    last = schedule.stages[-1].cost
    if last is not None and not any(
        own.batch for own in schedule.stages
    ):  # costs of stages are compared with one another
        batch = last.batch
    try:
        return counted_stages(full, [made], batch=batch)[0]
    except NotCounted:
        return made


def position(schedule: Schedule, index: int) -> Index:
    """Returns the position of a decided stage in the space of its schedule.

    Raises:
        InputError: the space does not have its network.
    """
    point, space = schedule.stages[index].point, schedule.space
    for place in space.places():
        if space.point(place) == point:
            return place
    raise InputError(
        f"stage {index} at {point} is not in the growth space of the plan, so the search after it has no candidates; "
        "take a point of the space, or plan again"
    )


def check_length(schedule: Schedule, search: OnlineSearch, steps: Sequence[int]) -> None:
    """Checks that every search fits into its stage.

    Args:
        steps: optimizer steps of each stage.

    Raises:
        InputError: a search takes more steps than its stage has.
    """
    for index in schedule.open:
        needed, there = search.length(index), steps[index]
        if needed > there:
            raise InputError(
                f"the search of stage {index} takes {needed} steps, but the stage has {there}; train for longer, or "
                f"search for fewer epochs (--set plan.settings.epochs={max(there / search.per_epoch(index), 0.1):.1f})"
            )
