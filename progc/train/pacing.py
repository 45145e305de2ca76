"""The pace of a run: the batch of each stage, checked before anything trains, and the learning rate along it."""

from __future__ import annotations

from progc.data.loading import check_share
from progc.errors import InputError
from progc.schedule.pace import Pace
from progc.schedule.schedule import Schedule
from progc.train.parallel.base import Parallel
from progc.train.settings import Settings, factor


def run_pace(schedule: Schedule, settings: Settings, samples: int, parallel: Parallel) -> Pace:
    """Returns the pace of a run.

    Args:
        schedule: the stages, with the batches that the settings give them.
        settings: settings of the run.
        samples: number of samples of an epoch.
        parallel: the processes that train together.

    Raises:
        InputError: the length of the run is unknown, or too short for its stages or its cool-down, or a batch is larger
            than the number of samples, or cannot be divided into ranks and micro-batches.
    """
    made = Pace.of(schedule, settings.batch, samples, settings.total)
    for batch in dict.fromkeys(made.batches):
        check_share(batch, parallel.world, settings.accumulate)
    if settings.cooldown >= made.units:
        raise InputError(
            f"cooldown: expected fewer than the {made.units} {schedule.unit} of the run, got {settings.cooldown}"
        )
    return made


def rate_factor(settings: Settings, pace: Pace, stage: int, step: int) -> float:
    """Returns the factor on the peak learning rates for the next step of a stage, after `step` steps of the run.

    It depends on the part of the run that is done, in the unit of the schedule: at the same epoch it is the same for
    all batches.
    """
    total = (pace.units - settings.cooldown) * pace.ruler
    begun = pace.mark(stage, pace.start(stage))
    return factor(settings, pace.mark(stage, step), total, begun, stage, pace.stride(stage))


def batch_notes(schedule: Schedule, settings: Settings) -> tuple[str, ...]:
    """Returns what a user should know about a run whose stages have batches of their own."""
    given = [stage.batch for stage in schedule.stages]
    if not any(given):
        return ()
    batches = schedule.batches(settings.batch)
    text = f"the stages have batches of {', '.join(map(str, batches))}"
    if all(given) and not settings.stage_batch:
        text += f", as the plan says, so train.batch ({settings.batch}) has no effect"
    if len(set(batches)) > 1 and not settings.stage_lr:
        text += "; the learning rate does not change with them (train.stage_lr sets a factor for each stage)"
    return (text,)
