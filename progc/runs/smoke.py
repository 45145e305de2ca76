"""A short real run: a few steps of every stage, with saves, boundaries, and a resume in the middle."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from progc import checkpoints
from progc.checkpoints.searching import steps as steps_of
from progc.errors import CheckError
from progc.ranks.agreeing import rank
from progc.runs.opening import Opened
from progc.schedule.pace import Pace
from progc.schedule.schedule import Schedule
from progc.train.parallel import Parallel


def shortened(run: Opened, steps: int) -> Opened:
    """Returns the run with `steps` optimizer steps per stage, a checkpoint in the middle of each, all of them kept."""
    schedule = run.schedule
    share = 1 / len(schedule.stages)
    stages = tuple(dataclasses.replace(stage, share=share) for stage in schedule.stages)
    total = steps * len(stages)
    short: Schedule = dataclasses.replace(schedule, stages=stages, total=total, unit="steps", rules=())
    if short.open and short.strategy == "one-shot":  # a search takes half of its stage
        per_epoch = max(Pace.of(short, run.settings.batch, len(run.task.samples)).per_epoch)
        searched = {"epochs": max(steps // 2, 1) / per_epoch, "batches": 1}
        short = dataclasses.replace(short, settings={**short.settings, **searched})
    settings = dataclasses.replace(
        run.settings,
        total=total,
        save_every=max(1, steps // 2),
        validate_every=None,
        keep=None,
        log_every=1,
        rewarm=min(run.settings.rewarm, steps - 1),
        cooldown=min(run.settings.cooldown, steps - 1),
    )
    return dataclasses.replace(run, schedule=short, settings=settings)


def smoke(run: Opened, steps: int, folder: Path, *, parallel: Parallel | None = None, **more: Any) -> dict[str, Any]:
    """Trains `steps` steps of every stage in `folder`, then resumes from a checkpoint in the middle and trains again.

    Args:
        run: the opened run; its tensors are trained, so open it again before using it for anything else.
        steps: optimizer steps per stage.
        folder: folder of the short run.
        parallel: the processes that train together; None is this process.
        more: further arguments of the trainer.

    Returns:
        JSON data: `steps`, `stages`, `resumed_at`, `same` (whether both trainings end with the same weights, bit for
        bit), `largest` (the largest difference of a weight) and `metrics`.

    Raises:
        CheckError: the run ended early or left no checkpoint, or the resumed run ended with other weights on a CPU.
    """
    from progc.train.trainer import Trainer

    short = shortened(run, steps)

    def train() -> Any:
        return Trainer(
            short.schedule, program=short.program, task=short.task, run=folder, settings=short.settings,
            source=short.source, optimizer=short.optimizer, inits=short.inits, parallel=parallel, **more,
        ).fit()  # fmt: skip

    first = train()
    if not first.finished:
        raise CheckError(f"smoke: the run ended early, at step {first.step} of {short.settings.total}; see {folder}")
    ends = weights(folder)
    saved = sorted(steps_of(folder))
    earlier = [item for item in saved if item[0] < first.step]
    if not earlier:
        raise CheckError(f"smoke: expected a checkpoint before the last step, got {len(saved)} in all")
    at, _ = earlier[len(earlier) // 2]
    if rank() == 0:
        for step, path in saved:
            if step > at:
                shutil.rmtree(path)
    if parallel is not None:
        parallel.any(False)  # wait on all ranks until the folders are removed
    second = train()
    if not second.finished or second.step != first.step:
        raise CheckError(f"smoke: the run resumed at step {at} ended at step {second.step}, expected step {first.step}")
    again = weights(folder)
    largest = max((_difference(ends[name], again[name]) for name in ends), default=0.0)
    same = ends.keys() == again.keys() and all(torch.equal(ends[name], again[name]) for name in ends)
    if not same and (parallel is None or parallel.device.type == "cpu"):
        raise CheckError(
            f"smoke: the run resumed at step {at} ended with other weights (largest difference {largest:.1e}); on a "
            "CPU they should be the same: please report this"
        )
    return {
        "steps": first.step, "stages": len(short.schedule.stages), "resumed_at": at, "same": same, "largest": largest,
        "metrics": first.metrics,
    }  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of the last checkpoint of a run.

    Raises:
        CheckError: there is no checkpoint.
    """
    newest = checkpoints.latest(folder)
    if newest is None:
        raise CheckError(f"smoke: there is no checkpoint in {folder}")
    found: dict[str, torch.Tensor] = checkpoints.load(newest).weights()
    return found


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape or not a.numel():
        return 0.0 if a.shape == b.shape else float("inf")
    return float((a.double() - b.double()).abs().max())
