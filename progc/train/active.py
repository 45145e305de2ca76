"""The stage that trains, with all that was made for it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from progc.data.task import Task
from progc.schedule.running import RunningStage
from progc.train.progress import Meter
from progc.train.stepping import Stepper

if TYPE_CHECKING:
    from progc.emit.stage_module import StageModule


@dataclasses.dataclass
class Active:
    """One stage.

    Attributes:
        module: under the user's names, not wrapped.
        task: samples at the stage's size, with its regularisation.
        start, stop: optimizer steps between which it trains; with rules, where it ends if none says otherwise.
    """

    running: RunningStage
    module: StageModule
    task: Task
    stepper: Stepper
    meter: Meter
    start: int
    stop: int

    @property
    def index(self) -> int:
        """Of the stage."""
        return self.running.stage.index
