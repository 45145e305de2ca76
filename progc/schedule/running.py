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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from progc.errors import InputError
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.lift.averages import EmaLike, attached
from progc.lift.revert import TOLERANCE, tolerance
from progc.pipeline.manager import hand_over
from progc.schedule.controlling import Controller, Ended
from progc.schedule.point import Point
from progc.schedule.schedule import Schedule
from progc.schedule.stage import Stage
from progc.schedule.stage_programs import StagePrograms

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
    ) -> None:
        self.tolerance = tolerance
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
        while self.controller is not None or step < self.stop:
            yield step
            step += 1
            if self.controller is not None:
                self.controller.observe(step, **self._seen)
                self._seen = {}
                if self.controller.ended() is not None:
                    return

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
    programs = StagePrograms.of(program, schedule, inits)
    first = trained(program if source is None else source, module)
    programs.check(source, start)
    bounds = [*starts, length or 0]
    return _run(programs, first, source is not None, bounds, optimizer, ema, start, controller)


def _run(
    programs: StagePrograms,
    before: Program,
    up: bool,
    bounds: Sequence[int],
    optimizer: Any,
    ema: Any,
    start: int,
    controller: Controller | None,
) -> Iterator[RunningStage]:
    making = _is_maker(optimizer), _is_maker(ema)
    held = (None if making[0] else optimizer, None if making[1] else ema)
    at: Point | None = None
    for stage in programs.stages[start:]:
        begun = at is None
        carried = before if held[1] is None else attached(before, held[1])
        found = programs.cut(carried, stage.index) if begun and not up else programs.grow(carried, at, stage.index)
        now = found.program.complete()
        hand_over(before, now, found.lifts, optimizer=held[0], ema=held[1], correct_rates=False)
        made = ProgramModule(now).train()
        if begun:
            held = (optimizer(made) if making[0] else optimizer, ema(made) if making[1] else ema)
        span = bounds[stage.index], bounds[stage.index + 1]
        if controller is not None:
            span = max(controller.start, controller.step), controller.planned
        lossless = None if begun else found.lossless
        yield RunningStage(stage, now, made, span, held, found.notes, lossless, controller, tolerance(found.lifts))
        before, at = trained(now, made), programs.points[stage.index]


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
