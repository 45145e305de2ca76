"""The checkpoints of a run: what is in one, and the way back into the objects that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from progc.checkpoints import Saver, State, latest, mark_best
from progc.data.order import DataPosition
from progc.errors import InputError
from progc.ranks.gathering import agreed, rank, told
from progc.schedule.controlling import Controller
from progc.schedule.running import RunningStage
from progc.schedule.schedule import Schedule
from progc.train.parallel import Parallel
from progc.train.settings import Settings

if TYPE_CHECKING:
    from progc.checkpoints import Checkpoint
    from progc.emit.stage_module import StageModule


class Keeping:
    """Saves, and restores.

    Attributes:
        saved: step of the last checkpoint; None before the first.
        saver: writes, in the background where the settings say so.
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
        per_epoch: int,
        config: Mapping[str, Any] | None,
    ) -> None:
        """
        Args:
            controllers: live objects with a state: guards, sums, the rules that end stages.
            per_epoch: optimizer steps of an epoch.
        """
        self.run, self.saver, self.schedule, self.settings = run, saver, schedule, settings
        self.parallel, self.config = parallel, config
        self.saved: int | None = None
        self._scaler = scaler if scaler.is_enabled() else None
        self._controllers, self._per_epoch = dict(controllers), per_epoch

    def position(self, step: int) -> DataPosition:
        """Where a run stands in its data when `step` steps are done: it follows from the step."""
        epoch, place = divmod(step, self._per_epoch)
        return DataPosition(self.settings.seed, epoch, place * self.settings.batch)

    def save(self, running: RunningStage, module: StageModule, step: int) -> None:
        """A checkpoint of this step, unless there is one.

        Raises:
            InputError: the disk refuses, now or at the save before.
        """
        if self.saved == step:
            return
        position = self.position(step)
        self.saver.save(
            State(module, running.optimizer, running.ema, self._scaler, self._controllers), step, epoch=position.epoch,
            stage=running.stage.index, data=position, schedule=self.schedule, config=self.config,
        )  # fmt: skip
        self.saved = step

    def mark_best(self, step: int, value: float | None) -> None:
        """Says that the checkpoint of this step, which is there, is the best so far."""
        self.saver.wait()
        if self.parallel.rank == 0:
            mark_best(self.run, step, value)

    def restore(self, checkpoint: Checkpoint, running: RunningStage, module: StageModule) -> int:
        """Puts a checkpoint back into the stage that it was saved in; returns its step.

        Raises:
            InputError: it is of other data, or of another schedule.
        """
        step = checkpoint.manifest.step
        if checkpoint.data is not None and checkpoint.data != self.position(step):
            raise InputError(
                f"{self.run} was trained with another seed, batch or number of samples; go on with the same, or choose "
                "another folder"
            )
        known = checkpoint.schedule
        if known is not None and known.to_json() != self.schedule.to_json():
            raise InputError(
                f"{self.run} was trained by another schedule; go on with the same, or choose another folder"
            )
        checkpoint.restore(State(module, running.optimizer, running.ema, self._scaler, self._controllers))
        self.saved = step
        return step


def newest(run: Path, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from: rank 0 looks, so that all ranks go on from the same one.

    Raises:
        InputError: as `latest`, on every rank.
    """
    found, failed = None, None
    try:
        found = latest(run, tell=tell) if rank() == 0 else None
    except InputError as error:
        failed = error
    agreed(failed)
    return told(found)


class Rules:
    """The controller of the stages as an object with a state."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def state_dict(self) -> dict[str, Any]:
        """Its state, JSON."""
        return self.controller.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """It was made of this state already: the stage that it is in decides what is built."""
