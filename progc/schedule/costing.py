"""Costs of the stages of a schedule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from progc.analysis.costs.cost import StageCost
from progc.analysis.costs.counting import Step, cost_of, step_of
from progc.analysis.costs.machine import Machine, default_machine
from progc.ir.deferred import device_of
from progc.ir.program import Program
from progc.schedule.point import Point
from progc.schedule.stage import Stage
from progc.schedule.stage_programs import StagePrograms
from progc.schedule.timing import step_times
from progc.transforms.freezing.setting import trainable

if TYPE_CHECKING:
    from progc.data.task import Task

_Key = tuple[Point, frozenset[str], int | None]
"""What the costs of a stage depend on: network, trainable set, and batch."""


def counted_stages(
    full: Program,
    stages: Sequence[Stage],
    *,
    batch: int | None = None,
    measure: Task | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    machine: Machine | None = None,
) -> tuple[Stage, ...]:
    """Counts the costs of all stages on shapes alone; equal networks and trainable sets are counted once.

    Args:
        full: the full program; its parameters may be deferred unless steps are measured.
        batch: samples per step of stages without a batch of their own; None takes that of the example inputs.
        measure: a task on which steps are timed as well, one step of each stage in turn.
        seed: seed for timing.
        device: where steps are timed; None takes the device of the program's tensors.
        machine: rates for predicted seconds; None takes typical rates of the program's device.

    Returns:
        The stages with `cost` set.

    Raises:
        NotCounted: a stage's graph does not run on shapes alone.
        TargetError, PassOptionError: the network cannot have the sizes or the trainable set of a stage.
    """
    machine = machine or default_machine(_device(full))
    programs = StagePrograms(full, stages)
    counted: dict[_Key, StageCost] = {}
    keys: list[_Key] = []
    for number, stage in enumerate(stages):
        program = programs.outline(number)
        size = batch if stage.batch is None else stage.batch
        key = stage.point.network, frozenset(trainable(program)), size
        if key not in counted:
            step = step_of(program, size)
            cost = cost_of(program, step)
            counted[key] = dataclasses.replace(cost, predicted_seconds=machine.seconds(step))
        keys.append(key)
    if measure is not None:
        counted = _measured(programs, keys, counted, measure, seed, device)
    return tuple(dataclasses.replace(stage, cost=counted[key]) for stage, key in zip(stages, keys, strict=True))


def _measured(
    programs: StagePrograms,
    keys: Sequence[_Key],
    counted: Mapping[_Key, StageCost],
    task: Task,
    seed: int,
    device: str | torch.device | None,
) -> dict[_Key, StageCost]:
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    networks = [programs.cut(programs.full, number, storage="share").program for number in first.values()]
    batches = [counted[key].batch for key in first]
    rows = [programs.stages[number].sid for number in first.values()]
    seconds = step_times(networks, task, batch=batches, seed=seed, device=device, stages=rows)
    return {key: dataclasses.replace(counted[key], seconds=found) for key, found in zip(first, seconds, strict=True)}


def predicted_seconds(
    program: Program | Step, *, batch: int | None = None, machine: Machine | None = None, learning: bool = True
) -> float:
    """Predicts the seconds of one training step of a program with its present trainable set, from its graph alone.

    With the default rates only ratios are meaningful; `calibrate()` measures the rates of this machine.

    Args:
        batch: samples per step; None takes the batch size of the example inputs.
        machine: rates; None takes typical rates of the program's device.
        learning: whether the optimizer's step is included.

    Raises:
        NotCounted, InputError: as for `count`.
    """
    if isinstance(program, Step):
        return (machine or default_machine()).seconds(program, learning=learning)
    return (machine or default_machine(_device(program))).seconds(step_of(program, batch), learning=learning)


def token_linear(points: Sequence[tuple[float, float, float]]) -> float:
    """Returns the speedup of stages of equal length, over the last stage throughout, in a token-linear cost model.

    A stage costs tokens x depth x (2 + d) / 3 of a step of the full network. d is the share of the blocks that train:
    the gradients of weights take a third of a step. The bounds of the published schedules are computed in this way.

    Args:
        points: per stage the side of the image, the depth (in any unit), and d.
    """
    side, depth, _ = points[-1]
    costs = [(s / side) ** 2 * (blocks / depth) * (2 + d) / 3 for s, blocks, d in points]
    return float(costs[-1] * len(costs) / math.fsum(costs))


def _device(program: Program) -> str:
    return next((device_of(tensor).type for _, tensor in program.parameters()), "cpu")
