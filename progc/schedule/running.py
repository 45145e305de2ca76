"""Runs the stages of a schedule one after another, and carries network, optimizer and averages from stage to stage.

    for running in progc.stages(program, schedule, optimizer=lambda module: torch.optim.AdamW(module.parameters())):
        for step in running.steps:
            x, y = ...
            loss = F.cross_entropy(running.module(x, **running.inputs(len(x))), y)
            loss.backward(); running.optimizer.step(); running.optimizer.zero_grad()

Between two stages, when the generator resumes, the trained network grows to that of the next stage. Trainable set and
drop rates are set for the next stage, and optimizer and averages are re-pointed to the new parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from progc.errors import InputError, NotLosslessError
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.lift.averages import EmaLike, attached
from progc.lift.revert import TOLERANCE, tolerance
from progc.pipeline.manager import hand_over
from progc.schedule.controlling import Controller, Ended
from progc.schedule.point import Point
from progc.schedule.schedule import Decision, Schedule
from progc.schedule.stage import Stage
from progc.schedule.stage_programs import Grown, StagePrograms

if TYPE_CHECKING:
    from progc.lift.optimizers import Optimizers


class RunningStage:
    """One stage while it runs.

    Attributes:
        stage: the stage in the schedule.
        program: the program of the stage; its parameters are those of `module`.
        module: the module to train, in train mode.
        start, stop: first epoch or step, and the one after the last. With rules, `stop` is where the stage ends if no
            rule decides otherwise.
        optimizer, ema: optimizer and averages, re-pointed to the parameters of `module`.
        notes: notes of the passes at the boundary.
        lossless: whether the boundary does not change the function in eval mode, by analysis; None at the first stage.
        tolerance: largest relative difference of outputs, in float64, at a lossless boundary.
        controller: ends stages by the schedule's rules; None without rules.
        begun: first epoch or step of the stage; `start` is later where a search took the first ones.
        search: the search that this part of the stage is; None where the stage's own network trains.
        schedule: the schedule as far as it is decided.
        decision: what a search at this boundary decided; None where there was none.
    """

    def __init__(
        self,
        stage: Stage,
        program: Program,
        module: ProgramModule,
        span: tuple[int, int],
        held: tuple[Any, Any],
        notes: tuple[str, ...],
        lossless: bool | None,
        controller: Controller | None,
        tolerance: float = TOLERANCE,
        *,
        schedule: Schedule | None = None,
        begun: int | None = None,
        search: SearchStage | None = None,
        decision: Decision | None = None,
    ) -> None:
        self.tolerance = tolerance
        self.schedule, self.search, self.decision = schedule, search, decision
        self.begun = span[0] if begun is None else begun
        self.stage, self.program, self.module = stage, program, module
        self.start, self.stop = span
        self.optimizer, self.ema = held
        self.notes = notes
        self.lossless = lossless
        self.controller = controller
        self._seen: dict[str, float] = {}

    @property
    def steps(self) -> Iterator[int]:
        """Iterates over the epochs or steps of this stage, numbered over the whole run; with rules, until one ends it.

        What `observe` gets for a step takes effect when the loop asks for the next one.
        """
        step = self.start
        while (self.controller is not None and self.search is None) or step < self.stop:
            if self.search is not None:
                self._prepare(self.search, step)
            yield step
            step += 1
            if self.controller is not None:
                self.controller.observe(step, **self._seen)
                self._seen = {}
                if self.controller.ended() is not None:
                    return

    def _prepare(self, search: SearchStage, step: int) -> None:
        """Evaluates candidates and chooses the sub-network of the next step of the schedule's unit."""
        per_unit = max(search.total // max(self.stop - self.start, 1), 1)
        place = (step - self.start) * per_unit
        for mark in search.marks:
            if mark <= place:
                search.evaluate(mark)
        search.choose(place)

    def observe(
        self, *, loss: float | None = None, validation: float | None = None, seconds: float | None = None
    ) -> None:
        """Gives the rules what was observed in the present step; see `Controller.observe`."""
        given = {"loss": loss, "validation": validation, "seconds": seconds}
        self._seen.update({name: value for name, value in given.items() if value is not None})

    @property
    def ended(self) -> Ended | None:
        """How the rules ended the stage; None without rules, and while it runs."""
        log = self.controller.log if self.controller is not None else []
        return next((end for end in log if end.stage == self.stage.index), None)

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Returns the keyword inputs that each call needs besides the user's: the stage, int64 `[batch]`, or none."""
        return stage_inputs(self.program, self.stage, batch, next(self.module.parameters()).device)


def stage_inputs(program: Program, stage: Stage, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the inputs of `RunningStage.inputs` for a program, which may have shapes only."""
    sid = program.sid
    if sid is None or sid.input is None:
        return {}
    row = sid.null if stage.sid is None else stage.sid
    return {sid.input: torch.full((batch,), row, dtype=torch.int64, device=device)}


class SearchStage(Protocol):
    """The part of a stage in which a supernet trains; see `progc.search.online`.

    Attributes:
        module: the supernet.
        total: optimizer steps of the search.
        marks: steps of the search before which candidates are evaluated; `total` stands for its end.
        programs: the programs of the sub-networks.
        owns_averages: whether the averages were made for the search alone.
    """

    module: ProgramModule
    total: int
    marks: tuple[int, ...]

    @property
    def programs(self) -> list[Program]: ...

    @property
    def owns_averages(self) -> bool: ...

    def twin(self) -> ProgramModule:
        """Returns another module over the same tensors, which a wrapper of several processes may change."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs besides tensors, JSON data."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""

    def attach(self, optimizer: Any, ema: Any) -> Any:
        """Takes optimizer and averages; returns the averages to update after each step."""

    def choose(self, step: int) -> int:
        """Chooses the sub-network that a step of the search trains; returns its index."""

    def evaluate(self, step: int) -> None:
        """Evaluates all candidates if it is due before that step."""

    def finish(self) -> tuple[Stage, Decision, Program, Grown]:
        """Returns the stage as it was decided, the decision, the supernet's program, and the winner's."""

    def release(self) -> None:
        """Removes what only the search needed."""


class Decider(Protocol):
    """Decides the open stages of a schedule; see `progc.search.online.OnlineSearch`.

    Attributes:
        trains: whether a decision takes training steps of its stage.
    """

    trains: bool

    def per_epoch(self, index: int) -> int:
        """Returns the optimizer steps per epoch of a stage."""

    def decide(
        self, programs: StagePrograms, schedule: Schedule, index: int, make: Callable[[Stage], Program]
    ) -> tuple[Stage, Decision]:
        """Decides a stage without training; `make` returns its program at another point, with present weights."""

    def largest(self, schedule: Schedule, index: int) -> tuple[Stage, list[Any]]:
        """Returns the stage as the network that holds all candidates, and their positions."""

    def inits(self, schedule: Schedule) -> list[dict[str, str]]:
        """Returns how new blocks of that network are made; the next one is used where one is not exact."""

    def growth(self, schedule: Schedule) -> dict[str, str] | None:
        """Returns how new blocks are made at boundaries without a search; None leaves it to the run."""

    def forget(self, optimizer: Any) -> None:
        """Resets the optimizer after a boundary, where the published procedure does."""

    def begin(self, schedule: Schedule, index: int, places: Sequence[Any], program: Program, grown: str) -> SearchStage:
        """Begins the search on a program that holds all candidates."""


def stages(
    program: Program,
    schedule: Schedule,
    *,
    source: Program | None = None,
    optimizer: Optimizers | Callable[[ProgramModule], Any] = None,
    ema: EmaLike | Sequence[EmaLike] | Callable[[ProgramModule], Any] | None = None,
    module: nn.Module | None = None,
    inits: Mapping[str, str] | None = None,
    start: int = 0,
    total: int | None = None,
    controller: Controller | None = None,
    search: Decider | None = None,
) -> Iterator[RunningStage]:
    """Iterates over the stages of a schedule, growing the network between them.

    The first stage is cut out of the full program (as a copy), or grown from `source`. Each later stage grows from the
    previous one, with the weights that its module has when the generator resumes. A first stage that is the whole
    network trains the tensors of the given program themselves.

    Args:
        program: the full program that the schedule was made for.
        source: a smaller program to start with. Without it, weights that the first stage leaves out are not used.
        optimizer: one or several optimizers that hold the parameters of `program` (or `source`), or a function that
            makes them from the module of the first stage.
        ema: averaged copies, or a function that makes a `progc.EMA` from the module of the first stage.
        module: the module of `program` (or `source`) if it has been trained; its values are used.
        inits: how new weights are made (see `progc.pipeline.text.parse_inits`).
        start: the stage to start with, for a resumed run. The graph and the order of the parameters are the same as
            in the interrupted run; values are not, so load them.
        total: length of the run in the schedule's unit; None takes the schedule's own.
        controller: the controller of a resumed run; None makes a new one if the schedule has rules.
        search: decides open stages.

    Yields:
        The stages, ready to train.

    Raises:
        InputError: the schedule is for another network, or the stage or the length is unknown.
        TargetError, NotLosslessError: the network cannot grow from one stage to the next, or not to the full one. This
            is found on shapes alone, before anything trains.
    """
    if not 0 <= start < len(schedule.stages):
        raise InputError(f"start: expected a stage from 0 to {len(schedule.stages) - 1}, got {start}")
    starts = schedule.starts(total)
    length = schedule.total if total is None else total
    if controller is None and schedule.rules:
        controller = Controller.of(schedule, total)
    if schedule.open and search is None:
        raise InputError(
            f"stages: stage {schedule.open[0]} is decided in training, which needs samples; use progc.stages(..., "
            "task=Task(samples), batch=...), or plan with decide=before"
        )
    programs = StagePrograms.of(program, schedule, inits)
    first = trained(program if source is None else source, module)
    programs.check(source, start)
    bounds = [*starts, length or 0]
    run = _Run(programs, schedule, bounds, source is not None, search, controller, optimizer, ema)
    return run.stages(first, start)


class _Run:
    """Goes from stage to stage: makes each one's network, and hands optimizer and averages over."""

    def __init__(
        self,
        programs: StagePrograms,
        schedule: Schedule,
        bounds: Sequence[int],
        up: bool,
        search: Decider | None,
        controller: Controller | None,
        optimizer: Any,
        ema: Any,
    ) -> None:
        self.programs, self.schedule, self.bounds, self.up = programs, schedule, bounds, up
        self.search, self.controller = search, controller
        self._makers = (optimizer if _is_maker(optimizer) else None, ema if _is_maker(ema) else None)
        self.held = (None if self._makers[0] else optimizer, None if self._makers[1] else ema)
        self._at: Point | None = None
        self._begun = False

    def stages(self, before: Program, start: int) -> Iterator[RunningStage]:
        for index in range(start, len(self.schedule.stages)):
            decision: Decision | None = None
            if self.schedule.stages[index].open:
                assert self.search is not None
                if self.search.trains:
                    before = yield from self._searched(before, index)
                    continue
                decision = self._decided(before, index)
            found = self._next(before, index)
            running = self._running(before, found, index, decision=decision)
            if self.search is not None and index:
                self.search.forget(running.optimizer)
            yield running
            before = self._left(running)

    def _next(self, before: Program, index: int) -> Grown:
        """The stage's network with the present weights."""
        carried = before if self.held[1] is None else attached(before, self.held[1])
        if self._at is None and not self.up:
            return self.programs.cut(carried, index)
        inits = None if self.search is None else self.search.growth(self.schedule)
        return self.programs.grow(carried, self._at, index, inits=inits)

    def _running(
        self, before: Program, found: Grown, index: int, stage: Stage | None = None, **more: Any
    ) -> RunningStage:
        """The stage, ready to train: optimizer and averages follow, or are made of the first module."""
        begun = not self._begun
        now = found.program.complete()
        joined = hand_over(before, now, found.lifts, optimizer=self.held[0], ema=self.held[1], correct_rates=False)
        search = more.get("search")
        made = ProgramModule(now).train() if search is None else search.module.train()
        if begun:
            makers, held = self._makers, self.held
            self.held = (makers[0](made) if makers[0] else held[0], makers[1](made) if makers[1] else held[1])
            self._begun = True
        lossless = None if begun else found.lossless
        return RunningStage(
            stage or self.schedule.stages[index], now, made, self._span(index), self.held, (*found.notes, *joined),
            lossless, self.controller, tolerance(found.lifts), schedule=self.schedule, begun=self._start(index), **more,
        )  # fmt: skip

    def _span(self, index: int) -> tuple[int, int]:
        if self.controller is not None:
            return max(self.controller.start, self.controller.step), self.controller.planned
        return self.bounds[index], self.bounds[index + 1]

    def _start(self, index: int) -> int:
        """The first epoch or step of the stage, also where a run resumes in the middle of it."""
        return self.bounds[index] if self.controller is None else self.controller.start

    def _left(self, running: RunningStage) -> Program:
        """The program that a stage leaves, with the weights that its module has now."""
        self._at = self.programs.points[running.stage.index]
        return trained(running.program, running.module)

    # -- open stages -----------------------------------------------------------------------------------------------

    def _replace(self, stage: Stage, decision: Decision) -> None:
        self.schedule = self.schedule.with_decision(stage, decision)
        self.programs.replace(self.schedule.stages[stage.index])

    def _decided(self, before: Program, index: int) -> Decision:
        """Decides a stage without training."""
        assert self.search is not None
        present = self.schedule.stages[index]

        def make(stage: Stage) -> Program:
            self.programs.replace(stage)
            try:
                plain = dataclasses.replace(self._unattached(before, index), averages=())
                return plain.complete()
            finally:
                self.programs.replace(present)

        stage, decision = self.search.decide(self.programs, self.schedule, index, make)
        self._replace(stage, decision)
        return decision

    def _unattached(self, before: Program, index: int) -> Program:
        if self._at is None and not self.up:
            return self.programs.cut(before, index, storage="share").program
        return self.programs.grow(before, self._at, index, verify=False).program

    def _searched(self, before: Program, index: int) -> Generator[RunningStage, None, Program]:
        """Yields the stage with its supernet, then with the network that was chosen."""
        assert self.search is not None
        largest, places = self.search.largest(self.schedule, index)
        self.programs.replace(largest)
        found, grown = self._supernet(before, index)
        # The search, the module and the optimizer share these tensors.
        found = dataclasses.replace(found, program=found.program.complete())
        searching = self.search.begin(self.schedule, index, places, found.program, grown)
        span = self._span(index)
        end = span[0]
        if searching.total:
            running = self._running(before, found, index, largest, search=searching)
            self.search.forget(running.optimizer)
            running.ema = searching.attach(running.optimizer, running.ema)
            end = running.stop = span[0] + self._units(searching.total, index)
            yield running
        else:
            hand_over(before, found.program, found.lifts, optimizer=self.held[0], ema=self.held[1], correct_rates=False)
            searching.attach(*self.held)
        stage, decision, supernet, winner = searching.finish()
        self._replace(stage, decision)
        now = self.programs.adopted(winner.program, index)
        averages = None if searching.owns_averages else self.held[1]
        joined = hand_over(supernet, now, winner.lifts, optimizer=self.held[0], ema=averages, correct_rates=False)
        searching.release()
        self.search.forget(self.held[0])
        made = ProgramModule(now).train()
        if not self._begun:
            makers, held = self._makers, self.held
            self.held = (makers[0](made) if makers[0] else held[0], makers[1](made) if makers[1] else held[1])
            self._begun = True
        running = RunningStage(
            self.schedule.stages[index], now, made, (end, span[1]), self.held, (*winner.notes, *joined), False,
            self.controller, tolerance(winner.lifts), schedule=self.schedule, decision=decision,
            begun=self._start(index),
        )  # fmt: skip
        yield running
        return self._left(running)

    def _units(self, steps: int, index: int) -> int:
        """Optimizer steps of a stage in the unit of the schedule, rounded up."""
        assert self.search is not None
        return steps if self.schedule.unit == "steps" else -(-steps // self.search.per_epoch(index))

    def _supernet(self, before: Program, index: int) -> tuple[Grown, str]:
        """The network that holds all candidates, and how its new blocks were made."""
        assert self.search is not None
        carried = before if self.held[1] is None else attached(before, self.held[1])
        if self._at is None and not self.up:
            return self.programs.cut(carried, index), "none"
        ways = self.search.inits(self.schedule)
        for number, inits in enumerate(ways):
            try:
                found = self.programs.grow(carried, self._at, index, inits=inits)
            except NotLosslessError:
                if number + 1 == len(ways):
                    raise
                continue
            words = inits["depth"]
            return found, words if not number else f"{words}, because new blocks cannot be exact in this network"
        raise AssertionError("a search has at least one way to make new blocks")


def trained(program: Program, module: nn.Module | None) -> Program:
    """Returns the program with the tensors of its module: the same objects, unless the module was moved or cast.

    Raises:
        InputError: the module is not that of the program.
    """
    if module is None:
        return program
    own = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    missing = [name for name in program.tensors if name not in own]
    odd = [n for n, tensor in program.tensors.items() if n in own and own[n].shape != tensor.shape]
    if missing or odd:
        raise InputError(
            f"module: `{(missing or odd)[0]}` of {program.class_name} is missing or has another shape than in the "
            "program; give the module that program.module() made"
        )
    if all(own[name] is tensor for name, tensor in program.tensors.items()):
        return program
    return program.replace(tensors={name: own[name] for name in program.tensors})


def _is_maker(given: Any) -> bool:
    """Whether a function is given that makes an optimizer or averages."""
    return callable(given) and not isinstance(given, nn.Module)
