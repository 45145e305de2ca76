"""Compiles the next stage while the current one trains. Training continues whatever happens to that compilation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from progc.data.staged import for_stage
from progc.data.task import Task
from progc.emit import emit
from progc.emit.ahead import Ahead, compile_ahead, compiled_in_place
from progc.emit.stage_module import StageModule
from progc.errors import one_line
from progc.ir.program import Program
from progc.schedule.running import stage_inputs
from progc.schedule.schedule import Schedule
from progc.schedule.stage_programs import StagePrograms
from progc.train.settings import Settings
from progc.train.stepping import AMP_DTYPES


class NextStage:
    """Compiles one stage in another process.

    Attributes:
        failed: why compiling ahead failed, for people; None if it has not failed so far. A stage for which it failed is
            compiled when it begins.
    """

    def __init__(
        self,
        outline: Program,
        settings: Settings,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        device: torch.device,
        present: tuple[Program, tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> None:
        """
        Args:
            outline: program of the stage; its tensors may be deferred and stay so, since no second set of weights is
                made.
            settings: settings of the run.
            call: positional and keyword inputs at the size of a micro-batch; values and devices do not matter.
            device: device on which the stage will train.
            present: outline and inputs of the stage that trains now. Its regions are already compiled, so what the
                next stage shares with it is not compiled again.
        """
        self.failed: str | None = None
        self._ahead: Ahead | None = None

        def hollow(program: Program) -> StageModule:
            return emit(program, settings.compile, recompute=settings.recompute, modes=("train",), hollow=True)

        try:
            autocast = AMP_DTYPES[settings.amp]
            if present is not None:
                compiled_in_place(present[0], hollow(present[0]), *present[1], autocast=autocast, device=device)
            self._ahead = compile_ahead(outline, hollow(outline), *call, autocast=autocast, device=device)
        except Exception as error:  # kernels, files and processes raise many types; none is worth the run
            self.failed = one_line(error)

    def finish(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Waits until everything is in the compile cache of this process.

        Args:
            stop: asked while waiting; waiting ends once it returns True.

        Returns:
            False if the stage has to be compiled when it begins.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return False
        try:
            done = ahead.finish(stop)
        except Exception as error:  # a full disk, say
            done, self.failed = False, one_line(error)
            self._cancelled(ahead)
        if not done:
            self.failed = self.failed or "the compiling process ended before it had compiled everything"
        return done

    def cancel(self) -> None:
        """Ends the compilation if it still runs, and removes its files."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._cancelled(ahead)

    def _cancelled(self, ahead: Ahead) -> None:
        try:
            ahead.cancel()
        except Exception as error:
            self.failed = one_line(error)


class LookAhead:
    """Compiles the stage that follows the current one; at most one compilation runs at a time."""

    def __init__(
        self,
        program: Program,
        schedule: Schedule,
        task: Task,
        settings: Settings,
        device: torch.device,
        *,
        micro: Sequence[int],
    ) -> None:
        """
        Args:
            program, schedule: as for `progc.stages`.
            task: samples and loss of the run.
            settings: settings of the run.
            device: device on which stages train.
            micro: samples per micro-batch of each stage.
        """
        self.program, self.schedule, self.task, self.settings = program, schedule, task, settings
        self.device, self.micro = device, micro
        self._wanted = settings.ahead and settings.compile != "eager"
        self._begun: int | None = None
        self._next: NextStage | None = None
        self._programs = StagePrograms.of(program, schedule)

    def follow(self, schedule: Schedule) -> None:
        """Takes the schedule as far as it is decided; all stages that were known stay as they were."""
        self.schedule = schedule
        for stage in schedule.stages:
            if stage != self._programs.stages[stage.index]:
                self._programs.replace(stage)

    def begin(self, index: int) -> None:
        """Starts compiling the stage after stage `index`, once that has taken a step; further calls do nothing."""
        if not self._wanted or self._begun == index or index + 1 >= len(self.schedule.stages):
            return
        if self.schedule.stages[index + 1].open:  # nobody knows its network yet
            return
        self._begun = index
        (present, call), (following, next_call) = (
            (self._programs.outline(k), self._call_of(k, self._programs.outline(k))) for k in (index, index + 1)
        )
        self._next = NextStage(following, self.settings, next_call, self.device, (present, call))

    def finish(self, stop: Callable[[], bool]) -> str | None:
        """Waits for the compilation until `stop` returns True; returns why it failed, or None."""
        following, self._next = self._next, None
        if following is None or following.finish(stop):
            return None
        return following.failed

    def cancel(self) -> None:
        """Ends the compilation if one runs."""
        following, self._next = self._next, None
        if following is not None:
            following.cancel()

    def _call_of(self, index: int, outline: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of a stage at the size of a micro-batch."""
        stage, micro = self.schedule.stages[index], self.micro[index]
        task = for_stage(self.task, stage.regularisation, outline)
        args, kwargs = task.inputs(next(task.batches(micro, seed=self.settings.seed, count=1)))
        return args, {**kwargs, **stage_inputs(outline, stage, micro, self.device)}
