"""The stages of a schedule as programs to train, one after another, with everything that trains carried along.

    for running in progc.stages(program, schedule, optimizer=lambda module: torch.optim.AdamW(module.parameters())):
        for step in running.steps:
            x, y = ...
            loss = F.cross_entropy(running.module(x, **running.inputs(len(x))), y)
            loss.backward(); running.optimizer.step(); running.optimizer.zero_grad()

Between two stages, where the generator goes on, the network grows out of the one that trained, its trainable set and
its drop rates become those of the next stage, and optimizer and averages are re-pointed.
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
from progc.schedule.outlines import SpaceGrowth, Way, outlined, rehearse, written_out
from progc.schedule.outlines import outlines as outlines
from progc.schedule.point import Point
from progc.schedule.schedule import Schedule
from progc.schedule.stage import Stage
from progc.transforms.dropping import is_linear

if TYPE_CHECKING:
    from progc.lift.optimizers import Optimizers


class RunningStage:
    """One stage while it runs.

    Attributes:
        stage: what the schedule says.
        program: its program; its parameters are those of `module`.
        module: what is to be trained; in train mode.
        start, stop: first epoch or step, and the one behind the last; with rules, where it ends if none says otherwise.
        optimizer, ema: what was given, or made, and goes along.
        notes: what the passes at the boundary say.
        lossless: whether the boundary kept the function in eval mode, by analysis; None at the first stage.
        tolerance: largest relative difference of outputs in float64 that a lossless boundary may show.
        controller: what ends stages by the schedule's rules; None without rules.
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
        """The epochs or steps of this stage, numbered over the whole run; with rules, until one ends it.

        What `observe` was told of a step counts when the loop asks for the next one.
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
        """Tells the rules of the present step; see `Controller.observe`."""
        given = {"loss": loss, "validation": validation, "seconds": seconds}
        self._seen.update({name: value for name, value in given.items() if value is not None})

    @property
    def ended(self) -> Ended | None:
        """How the stage ended, by the rules; None without rules, and while it runs."""
        log = self.controller.log if self.controller is not None else []
        return next((end for end in log if end.stage == self.stage.index), None)

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Keyword inputs that each call needs besides the user's: the stage, int64 `[batch]`, or none."""
        return stage_inputs(self.program, self.stage, batch, next(self.module.parameters()).device)


def stage_inputs(program: Program, stage: Stage, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What `RunningStage.inputs` gives, of a program that need not have values."""
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
    """The stages of a schedule, one after another.

    The first one is cut out of the full program (a copy), or grown from `source`; each later one grows out of the one
    before, from the weights that its module has when the generator goes on. A first stage that is the whole network
    trains the tensors of the given program themselves.

    Args:
        program: the full program, which the schedule was made for.
        source: a smaller program to begin with; without it, weights that the first stage leaves out are not used.
        optimizer: one or several that hold the parameters of `program` (or `source`), or a function that makes them of
            the first stage's module.
        ema: averaged copies, or a function that makes a `progc.EMA` of the first stage's module.
        module: the module of `program` (or `source`) if one trained already; its values count.
        inits: `depth` and `width` to how new weights are made (progc/pipeline/text.py).
        start: the stage to begin with, for a run that is resumed: its graph and the order of its parameters are what
            they were, values are not; load them.
        total: length of the run; None: the schedule's own.
        controller: of a run that is resumed; by default a new one, where the schedule has rules.

    Raises:
        InputError: a schedule for another network, an unknown stage or length.
        TargetError, NotLosslessError: a network that cannot grow from one stage to the next, or not to the full one;
            found out on shapes alone, before anything trains.
    """
    schedule.check(program)
    if not 0 <= start < len(schedule.stages):
        raise InputError(f"start: the schedule has stages 0 to {len(schedule.stages) - 1}, not {start}")
    starts = schedule.starts(total)
    length = schedule.total if total is None else total
    if controller is None and schedule.rules:
        controller = Controller.of(schedule, total)
    points = written_out([stage.point for stage in schedule.stages], program)
    first = trained(program if source is None else source, module)
    growth = SpaceGrowth(points, [*starts, length or 0], source is not None, inits, is_linear(program))
    rehearse(first, growth, program)
    return _run(first, schedule, growth, optimizer, ema, start, controller)


def _run(
    before: Program,
    schedule: Schedule,
    growth: SpaceGrowth,
    optimizer: Any,
    ema: Any,
    start: int,
    controller: Controller | None,
) -> Iterator[RunningStage]:
    making = _is_maker(optimizer), _is_maker(ema)
    held = (None if making[0] else optimizer, None if making[1] else ema)
    at: Point | None = None
    for stage in schedule.stages[start:]:
        begun = at is None
        carried = before if held[1] is None else attached(before, held[1])
        if begun and start:
            # A stage that a run is resumed in has the very graph that it had: all growth up to it is done again.
            ways = outlined(carried, schedule, growth, start + 1)
        else:
            ways = [Way(carried)]
            ways[0].lead(schedule, growth, stage, at)
        way, lifts = ways[-1], [lift for one in ways for lift in one.lifts]
        now = way.program.complete()
        hand_over(before, now, lifts, optimizer=held[0], ema=held[1], correct_rates=False)
        made = ProgramModule(now).train()
        if begun:
            held = (optimizer(made) if making[0] else optimizer, ema(made) if making[1] else ema)
        span = growth.bounds[stage.index], growth.bounds[stage.index + 1]
        if controller is not None:
            span = max(controller.start, controller.step), controller.planned
        lossless = None if begun else way.lossless
        yield RunningStage(stage, now, made, span, held, way.notes, lossless, controller, tolerance(lifts))
        before, at = trained(now, made), growth.points[stage.index]


def trained(program: Program, module: nn.Module | None) -> Program:
    """The program with the tensors that its module has now: the same objects, unless the module was moved or cast.

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
            f"the module lacks `{(missing or odd)[0]}` of {program.class_name} as the program has it; give the module "
            "that program.module() made"
        )
    if all(own[name] is tensor for name, tensor in program.tensors.items()):
        return program
    return program.replace(tensors={name: own[name] for name in program.tensors})


def _is_maker(given: Any) -> bool:
    """Whether what was given makes an optimizer or averages."""
    return callable(given) and not isinstance(given, nn.Module)
