"""One-shot search of a stage's network (AutoProg, Li et al., CVPR 2022; docs/one-shot.md).

At the start of a stage the network grows to the largest candidate. For S epochs each step trains one candidate, drawn
uniformly, on the weights that all share. Candidates are then compared by loss times time to a fitted power, and the
winner is read out of the shared weights: training goes on with it, nothing is trained twice. So a search is training:
it changes the weights, and its steps are part of the stage's budget.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.data.regularisation import Regularisation
from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.ir.random_state import seeded
from progc.lift.averages import Averages
from progc.schedule.building import network
from progc.schedule.point import Point
from progc.schedule.schedule import Decision
from progc.schedule.space import Index, Space
from progc.search.candidates import one_shot_candidates
from progc.search.elastic import train_step
from progc.search.one_shot_stage import BeforeStep, OneShotSettings, Progress, StageSearch
from progc.search.power_law import FitChoice
from progc.search.supernet import Supernet


@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """What a search at one stage gives.

    Attributes:
        index: the winner's place in the space.
        decision: all candidates with their scores.
        program: the winner's network with its trained weights; training goes on with it.
        optimizer: trains `program`; the one that was given, re-pointed, or a new one.
        ema: the averages that were given, re-pointed; in `reference` new ones where none were.
        steps: training steps that the search took, part of the stage's budget.
        overhead, overhead_cpu: seconds of the search that were not training steps, on the clock and of the processor.
    """

    index: Index
    decision: Decision
    program: Program
    optimizer: Optimizer
    ema: Averages | None
    steps: int
    overhead: float
    overhead_cpu: float


def search_stage(
    program: Program,
    space: Space,
    current: Index | None,
    task: Task,
    *,
    stage: int,
    stages: int,
    batch: int,
    seed: int = 0,
    mode: str = "default",
    settings: Mapping[str, Any] | OneShotSettings | None = None,
    optimizer: Optimizer | None = None,
    ema: Averages | None = None,
    regularisation: Regularisation | None = None,
    done: int = 0,
    before_step: BeforeStep | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Searches the network of one stage by training; `program`'s tensors, optimizer and averages are trained on.

    Args:
        program: the network of the stage before, at `current`; at the first stage the full one.
        current: where the stage before was; None at the first stage.
        stage, stages: which stage of how many, from 0 on.
        batch: samples per step.
        seed: of everything that is drawn.
        mode: `reference` as published, `default` as docs/one-shot.md says.
        optimizer: over the parameters of `program`; None: AdamW.
        ema: averaged copies of `program`.
        regularisation: rates of dropping that the supernet trains with (`stage_rates`); None: as they are.
        done: training steps before this stage.
        before_step: called before every training step with its number, counted from the start of training: the place
            for learning rates.

    Raises:
        CheckError: a loss that is NaN or infinite; names the stage, the candidate and the step.
        InputError: too few samples, or an option that is none.
        TargetError: a candidate that the network cannot be.
    """
    start, start_cpu = time.perf_counter(), time.process_time()
    places = one_shot_candidates(space, current, stage, stages, mode)
    points = [space.point(place) for place in places]
    if len({str(point.unfreeze) for point in points}) > 1:
        raise InputError("one-shot search: candidates share their weights, so trainable sets cannot be compared; "
                         "search them with strategy zero-shot")  # fmt: skip
    with seeded(seed * 1_000_003 + stage):
        found = StageSearch(
            space, task, stage, batch, seed, mode, OneShotSettings.of(settings), done, before_step, progress
        )
        found.begin(program, current, places, optimizer, ema, regularisation)
        if len(places) == 1:
            choice = FitChoice(0, 0.0, (0.0,), (0.0,), "the only candidate; nothing was searched, and no step taken")
        else:
            found.train()
            choice = found.choose()
        after = found.finish(places[choice.winner], points[choice.winner], current)
    decision = found.decision(points, choice, time.perf_counter() - start)
    assert found.optimizer is not None
    return Searched(
        places[choice.winner], decision, after, found.optimizer, found.ema, found.steps,
        overhead=time.perf_counter() - start - found.training,
        overhead_cpu=time.process_time() - start_cpu - found.training_cpu,
    )  # fmt: skip


def decide(
    full: Program,
    space: Space,
    current: Index | None,
    task: Task,
    *,
    stage: int,
    stages: int,
    batch: int,
    seed: int = 0,
    mode: str = "default",
    settings: Mapping[str, Any] | OneShotSettings | None = None,
    progress: Progress | None = None,
) -> tuple[Index, Decision]:
    """As `search_stage` on copies: nothing changes, and what was trained is lost. A trainer calls `search_stage`.

    Args:
        full: the full network with the weights of the moment.
    """
    program = copied(full)
    if current is not None and stage:
        program = network(program, space.point(current))[0]
    found = search_stage(
        program, space, current if stage else None, task, stage=stage, stages=stages, batch=batch, seed=seed,
        mode=mode, settings=settings, progress=progress,
    )  # fmt: skip
    return found.index, found.decision


def search(
    full: Program,
    space: Space,
    task: Task,
    *,
    stages: int,
    batch: int,
    seed: int = 0,
    mode: str = "default",
    settings: Mapping[str, Any] | OneShotSettings | None = None,
    progress: Progress | None = None,
) -> tuple[list[Index], list[Decision]]:
    """Decides all stages in a row, on a copy of `full`'s weights; the last stage is the full network.

    Between two searches the winner trains for `settings["between"]` epochs, none by default: then later stages are
    decided with weights that have seen the searches alone.

    Raises:
        ProgcError: see `search_stage`.
    """
    own = OneShotSettings.of(settings)
    program, current, done = copied(full), None, 0
    optimizer, ema = None, None
    places: list[Index] = []
    decisions: list[Decision] = []
    rates = stage_rates(full, stages, mode)
    for stage in range(stages - 1):
        found = search_stage(
            program, space, current, task, stage=stage, stages=stages, batch=batch, seed=seed, mode=mode,
            settings=own, optimizer=optimizer, ema=ema, regularisation=rates[stage], done=done, progress=progress,
        )  # fmt: skip
        program, current, optimizer, ema = found.program, found.index, found.optimizer, found.ema
        done += found.steps
        places.append(current)
        decisions.append(found.decision)
        if own.between and stage < stages - 2:
            done += train_on(
                program, optimizer, task, epochs=own.between, batch=batch, stage=stage, seed=seed, done=done,
                clip=own.clip, ema=ema,
            )  # fmt: skip
    return [*places, space.last], decisions


def stage_rates(full: Program, stages: int, mode: str) -> list[Regularisation]:
    """Rates of dropping that each stage's supernet trains with: the stage's own, or as published the last stage's.

    Args:
        full: its rates are those of the last stage.
    """
    from progc.schedule.regularising import ramp
    from progc.transforms.dropping import find_drops

    largest: dict[str, float] = {}
    for drop in find_drops(full.graphs["train"]):
        largest[drop.kind] = max(drop.rate, largest.get(drop.kind, 0.0))
    final = Regularisation(drop_path=largest.get("path"), dropout=largest.get("dropout"))
    return [final] * stages if mode == "reference" else ramp(stages, final, mode)


def train_on(
    program: Program,
    optimizer: Optimizer,
    task: Task,
    *,
    epochs: float,
    batch: int,
    stage: int,
    seed: int = 0,
    done: int = 0,
    clip: float | None = 1.0,
    ema: Averages | None = None,
    before_step: BeforeStep | None = None,
) -> int:
    """Trains a program's tensors by the steps of a search, without one; returns how many steps there were.

    Args:
        done, before_step: as for `search_stage`.

    Raises:
        CheckError: a loss that is NaN or infinite.
    """
    per_epoch = max(len(task.samples) // batch, 1)
    total, step = round(epochs * per_epoch), 0
    whole = Supernet(program, [Point()], own_statistics=False)
    row = None if program.sid is None else min(stage, program.sid.stages - 1)
    with seeded(seed * 1_000_003 + 500_009 + stage + done):
        while step < total:
            epoch = (done + step) // per_epoch
            for item in task.batches(batch, seed=seed, epoch=epoch, count=min(per_epoch, total - step)):
                if before_step is not None:
                    before_step(done + step)
                train_step(
                    whole, whole.members[0], task, item, optimizer, clip=clip, stage=row,
                    averages=[ema] if ema else [], where=f"stage {stage}, after the search, step {step}",
                )  # fmt: skip
                step += 1
    return total


def copied(program: Program) -> Program:
    """The program over tensors of its own; tied ones stay tied. Its averages are left out."""
    made: dict[int, torch.Tensor] = {}
    whole = program.complete()
    for tensor in whole.tensors.values():
        if id(tensor) not in made:
            fresh = tensor.detach().clone()
            same = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
            made[id(tensor)] = same
    return whole.replace(tensors={name: made[id(tensor)] for name, tensor in whole.tensors.items()}, averages=())
