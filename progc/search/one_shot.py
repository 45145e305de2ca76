"""One-shot search of the network of a stage (AutoProg, Li et al., CVPR 2022; docs/one-shot.md).

At the start of a stage the network grows to the largest candidate. For S epochs each step trains one candidate, drawn
uniformly, on weights that all candidates share. They are then compared by loss times time to a fitted power, and
training continues with the winner's part of the shared weights; nothing is trained twice. A search is therefore
training: it changes the weights, and its steps count as steps of the stage.
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
    """The result of a search at one stage.

    Attributes:
        index: position of the winner in the space.
        decision: all candidates with their scores.
        program: the winner's network with its trained weights, to continue training with.
        optimizer: optimizer of `program`: the given one, re-pointed, or a new one.
        ema: the given averages, re-pointed; in `reference` new ones if none are given.
        steps: number of training steps of the search; they count as steps of the stage.
        overhead, overhead_cpu: seconds of the search without its training steps: wall time and processor time.
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
    """Searches the network of one stage by training; it trains the tensors of `program`, its optimizer and averages.

    Args:
        program: the network of the previous stage, at `current`; at the first stage the full network.
        space: the growth space.
        current: position of the previous stage; None at the first stage.
        task: samples and loss.
        stage: index of the stage, from 0.
        stages: number of stages.
        batch: samples per step.
        seed: seed of everything that is drawn at random.
        mode: `reference` follows the paper, `default` is described in docs/one-shot.md.
        settings: see `progc.search.one_shot_stage.OneShotSettings`.
        optimizer: optimizer of the parameters of `program`; None makes AdamW.
        ema: averaged copies of `program`.
        regularisation: drop rates that the supernet trains with (see `stage_rates`); None keeps the present ones.
        done: number of training steps before this stage.
        before_step: called before every training step with its number in the whole training, to set learning rates.
        progress: called with a line that says how far the search is.

    Raises:
        CheckError: a loss is NaN or infinite; the message gives stage, candidate and step.
        InputError: too few samples, or an invalid option.
        TargetError: the network cannot have the sizes of a candidate.
    """
    start, start_cpu = time.perf_counter(), time.process_time()
    places = one_shot_candidates(space, current, stage, stages, mode)
    points = [space.point(place) for place in places]
    if len({str(point.unfreeze) for point in points}) > 1:
        raise InputError("one-shot search: candidates share their weights, so trainable sets cannot be compared; "
                         "use the strategy zero-shot for them")  # fmt: skip
    with seeded(seed * 1_000_003 + stage):
        found = StageSearch(
            space, task, stage, batch, seed, mode, OneShotSettings.of(settings), done, before_step, progress
        )
        found.begin(program, current, places, optimizer, ema, regularisation)
        if len(places) == 1:
            choice = FitChoice(0, 0.0, (0.0,), (0.0,), "the only candidate, so no search was needed")
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
    """Searches the network of one stage on a copy; nothing changes, and what the search trained is discarded.

    A trainer calls `search_stage` instead. Other arguments and errors as there.

    Args:
        full: the full network with its present weights.

    Returns:
        The position of the winner, and the decision.
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
    """Searches the networks of all stages in a row, on a copy of the weights; the last stage is the full network.

    Between two searches the winner trains for `settings["between"]` epochs. The default is none: later stages are then
    decided with weights that only the searches have trained.

    Returns:
        The position of every stage, and a decision for every stage except the last.

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
    """Returns the drop rates that the supernet of each stage trains with.

    In `default` these are the rates of the stage, in `reference` those of the last stage, as in AutoProg.

    Args:
        full: the full network; its rates are those of the last stage.
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
    """Trains a program with the training steps of a search, but without searching.

    Args:
        epochs: length of the training.
        done, before_step: as for `search_stage`.

    Returns:
        The number of steps.

    Raises:
        CheckError: a loss is NaN or infinite.
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
    """Returns the program over copies of its tensors, without averages; tied tensors stay tied."""
    made: dict[int, torch.Tensor] = {}
    whole = program.complete()
    for tensor in whole.tensors.values():
        if id(tensor) not in made:
            fresh = tensor.detach().clone()
            same = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
            made[id(tensor)] = same
    return whole.replace(tensors={name: made[id(tensor)] for name, tensor in whole.tensors.items()}, averages=())
