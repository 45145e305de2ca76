"""Saves the checkpoints of a run, and restores them into the objects that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from progc.checkpoints import Saver, State, latest, mark_best
from progc.data.order import DataPosition
from progc.errors import InputError
from progc.ranks.agreeing import raise_together, rank, told
from progc.schedule.controlling import Controller
from progc.schedule.pace import Pace
from progc.schedule.running import RunningStage, SearchStage
from progc.schedule.schedule import Schedule
from progc.train.parallel import Parallel
from progc.train.settings import Settings

if TYPE_CHECKING:
    from progc.checkpoints import Checkpoint


class Keeping:
    """Saves and restores the state of a run.

    Attributes:
        saved: step of the last checkpoint; None before the first.
        saver: writes checkpoints, in the background if the settings ask for it.
        pace: where the steps of the stages are in the data.
    """

    def __init__(
        self,
        run: Path,
        saver: Saver,
        schedule: Schedule,
        settings: Settings,
        parallel: Parallel,
        scaler: torch.amp.GradScaler,
        controllers: Mapping[str, Any],
        pace: Pace,
        config: Mapping[str, Any] | None,
    ) -> None:
        """
        Args:
            run: folder of the run.
            saver: writes the checkpoints.
            schedule: schedule of the run.
            settings: settings of the run.
            parallel: the processes that train together.
            scaler: gradient scaler; saved if it is enabled.
            controllers: objects with a `state_dict`, by name: the guard, running sums, the rules that end stages.
            pace: where the steps of the stages are in the data.
            config: saved with every checkpoint, plain JSON data.
        """
        self.run, self.saver, self.schedule, self.settings = run, saver, schedule, settings
        self.parallel, self.config = parallel, config
        self.saved: int | None = None
        self._scaler = scaler if scaler.is_enabled() else None
        self._controllers, self.pace = dict(controllers), pace

    def position(self, stage: int, step: int) -> DataPosition:
        """Returns the position in the data after `step` steps; it depends on the stages and the step only."""
        return DataPosition(self.settings.seed, *self.pace.position(stage, step))

    def save(self, running: RunningStage, module: nn.Module, step: int) -> None:
        """Saves a checkpoint of this step, unless it is already saved.

        Raises:
            InputError: the disk refuses this save, or refused the previous one in the background.
        """
        if self.saved == step:
            return
        position = self.position(running.stage.index, step)
        self.saver.save(
            State(module, running.optimizer, running.ema, self._scaler, self._controllers), step, epoch=position.epoch,
            stage=running.stage.index, data=position, schedule=self.schedule, config=self.config,
        )  # fmt: skip
        self.saved = step

    def mark_best(self, step: int, value: float | None) -> None:
        """Marks the saved checkpoint of this step as the best so far."""
        self.saver.wait()
        if self.parallel.rank == 0:
            mark_best(self.run, step, value)

    def restore(self, checkpoint: Checkpoint, running: RunningStage, module: nn.Module) -> int:
        """Restores a checkpoint into the stage it was saved in, and returns its step.

        Raises:
            InputError: the checkpoint was saved with other data, another order of the data, or another schedule.
        """
        step = checkpoint.manifest.step
        if checkpoint.data is not None and checkpoint.data != self.position(running.stage.index, step):
            raise InputError(
                f"{self.run} was trained with another seed, batch size or number of samples; use the same ones, or "
                "choose another folder"
            )
        known = checkpoint.schedule
        if known is not None and known.to_json() != self.schedule.to_json():
            raise InputError(
                f"{self.run} was trained with another schedule; use the same one, or choose another folder"
            )
        checkpoint.restore(State(module, running.optimizer, running.ema, self._scaler, self._controllers))
        self.saved = step
        return step


def newest(run: Path, tell: Callable[[str], None]) -> Path | None:
    """Returns the checkpoint to resume from. Rank 0 looks for it, so that all ranks resume from the same one.

    Args:
        run: folder of the run.
        tell: called with a message for every newer checkpoint that is passed over.

    Raises:
        InputError: as for `latest`, on every rank.
    """
    found, failed = None, None
    try:
        found = latest(run, tell=tell) if rank() == 0 else None
    except InputError as error:
        failed = error
    raise_together(failed)
    return told(found)


class Searching:
    """The search that trains now, as an object with a `state_dict`.

    Attributes:
        stage: the search; None where none trains.
    """

    def __init__(self) -> None:
        self.stage: SearchStage | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the search, JSON data; empty where none trains."""
        return {} if self.stage is None else self.stage.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if self.stage is not None and state:
            self.stage.load_state_dict(state)


class Rules:
    """Wraps the controller of the stages as an object with a `state_dict`."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, JSON data."""
        return self.controller.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Does nothing: the controller was already built from this state, since it decides which stage is built."""


def controller_of(schedule: Schedule, total: int, checkpoint: Checkpoint | None) -> Controller | None:
    """Returns what ends the stages of a run, as far as it was when the checkpoint was saved; None without rules.

    Args:
        schedule: schedule of the run.
        total: length of the run in the unit of the schedule.
        checkpoint: the checkpoint that the run resumes from; None at its beginning.
    """
    if not schedule.rules:
        return None
    if checkpoint is None:
        return Controller.of(schedule, total)
    return Controller.from_state(checkpoint.controller("stages"))
