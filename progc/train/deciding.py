"""Searches as a part of a run: what decides its open stages, a step of a supernet, and the record of a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progc.data.task import Task
from progc.ir.program import Program
from progc.schedule.running import RunningStage, SearchStage
from progc.schedule.schedule import Schedule
from progc.search.online import OnlineSearch, check_length
from progc.train.parallel import Parallel
from progc.train.progress import Progress
from progc.train.settings import Settings
from progc.train.stepping import Active, autocast

if TYPE_CHECKING:
    from progc.checkpoints import Checkpoint


def online_search(
    program: Program,
    schedule: Schedule,
    task: Task,
    settings: Settings,
    parallel: Parallel,
    progress: Progress,
    *,
    steps: Sequence[int],
) -> OnlineSearch | None:
    """Returns what decides the open stages of a run; None if its plan is complete.

    Args:
        program: the full program.
        schedule: the schedule; what searches in training have decided counts as open.
        task: samples and loss.
        settings: settings of the run; losses of candidates are computed in their precision, in micro-batches.
        parallel: the processes that train together.
        progress: shows how far a search is.
        steps: optimizer steps of each stage.

    Raises:
        InputError: a search does not fit into its stage, or one of its settings is invalid.
    """
    if not schedule.reopened.open:
        return None
    made = OnlineSearch(
        program, schedule, task, batch=settings.batch, parts=parallel.world * settings.accumulate,
        autocast=lambda: autocast(parallel.device, settings), progress=progress.note,
    )  # fmt: skip
    check_length(schedule.reopened, made, steps)
    return made


def as_saved(schedule: Schedule, checkpoint: Checkpoint | None) -> Schedule:
    """Returns the schedule as far as it was decided when the checkpoint was saved; later decisions are taken again."""
    known = None if checkpoint is None else checkpoint.schedule
    return known if known is not None and known.same_run(schedule) else schedule.reopened


def next_batches(active: Active, search: SearchStage, place: int, micro_batches: Sequence[Any]) -> list[Any]:
    """Chooses the sub-network of a step, and returns the micro-batches at its image size.

    Args:
        active: the search that trains.
        search: the same as `active.running.search`.
        place: number of the step in the search.
        micro_batches: micro-batches at the largest image size.
    """
    number = search.choose(place)
    active.module.chosen = number  # type: ignore[assignment]
    active.stepper.task = active.candidates[number]
    return [active.candidates[number].fit(batch) for batch in micro_batches]


def decision_line(running: RunningStage, seconds: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """Returns the line of `metrics.jsonl` for what a search decided.

    Args:
        running: the stage that was decided.
        seconds: seconds by phase.
        more: further facts.
    """
    decision = running.decision
    assert decision is not None
    # The clock's own phase "search" is the end of a one-shot search, without the evaluations before it.
    measured = {**{f"seconds_{name}": spent for name, spent in seconds.items()}, "seconds_search": decision.seconds}
    scores = {**decision.to_json(), "seconds": None}  # the same in every run
    facts = {"stage": decision.stage, "point": str(running.stage.point), "reason": decision.reason}
    return {**facts, **more, "scores": scores, "measured": measured}
