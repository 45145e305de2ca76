"""Measured steps: nothing of the program changes, candidates take turns, wrong input is one line."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import progc
from progc.analysis.costs.counting import NotCounted
from progc.data.task import Task
from progc.errors import InputError
from progc.schedule import Point, Unfreeze
from progc.schedule.building import stage_program
from progc.schedule.timing import step_time, step_times
from progc.transforms.freezing import set_trainable
from tests.zoo import captured


def images(size: int, classes: int, count: int = 8) -> Task:
    return Task([(torch.randn(3, size, size), index % classes) for index in range(count)])


def test_weights_buffers_gradients_and_random_states_stay() -> None:
    program, task = captured("timm:resnet18@64")[1], images(64, 1000, 4)
    before = {name: tensor.clone() for name, tensor in program.tensors.items()}
    first = next(tensor for _, tensor in program.parameters())
    first.grad = torch.full_like(first, 3.0)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    try:
        assert step_time(program, task, batch=2, warmup=1, repeats=1) > 0
        assert float(first.grad.mean()) == 3.0
    finally:
        first.grad = None
    assert all(torch.equal(before[name], tensor) for name, tensor in program.tensors.items())
    assert all(tensor.grad is None for tensor in program.tensors.values())
    assert torch.equal(states[0], torch.random.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_the_image_size_is_the_programs_and_what_trains_is_what_trains() -> None:
    full = captured("own:image")[1]
    seen: list[Any] = []

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.append(tuple(batch[0].shape))
        return F.cross_entropy(outputs, batch[1])

    small = stage_program(full, Point({"blocks": 2}, {}, (16, 16), Unfreeze.parse("prefix:1/2")))
    task = Task([(torch.randn(3, 32, 32), index % 7) for index in range(6)], loss)
    assert step_time(small, task, batch=3, warmup=0, repeats=2) > 0
    assert seen == [(3, 3, 16, 16)] * 2


def test_programs_take_turns_and_the_median_counts() -> None:
    seen: list[int] = []

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        seen.append(batch[0].shape[-1])
        return F.cross_entropy(outputs, batch[1])

    full = captured("own:image")[1]
    programs = [stage_program(full, Point({}, {}, (side, side))) for side in (16, 24)]
    ticks = iter([0, 1, 0, 100, 0, 3, 0, 300, 0, 20, 0, 200])
    task = Task([(torch.randn(3, 32, 32), index % 7) for index in range(4)], loss)
    found = step_times(programs, task, batch=2, warmup=1, repeats=3, clock=lambda: float(next(ticks)))
    assert found == [3.0, 200.0] and seen == [16, 24] * 4


def test_a_stage_input_is_given() -> None:
    program = progc.apply(captured("own:conditional")[1], "inject-sid{stages=3}")
    assert program.sid is not None and program.sid.input is not None
    task = Task(
        [(torch.randn(3, 32, 32), torch.randn(5), index % 7) for index in range(4)],
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch[2]),
        inputs=lambda batch: ((batch[0], batch[1]), {}),
    )
    for stage in (None, 0, 2):
        assert step_time(program, task, batch=2, warmup=0, repeats=1, stage=stage, learning=False) > 0
    with pytest.raises(InputError, match="stage: expected a row of the stage identifier, 0 to 3, got 4"):
        step_time(program, task, batch=2, stage=4)


def test_wrong_input_is_one_line() -> None:
    program = captured("own:image")[1]
    with pytest.raises(InputError, match="batches of 16 are needed, but 8 samples give 0"):
        step_time(program, images(32, 7), batch=16)
    with pytest.raises(InputError, match="repeats: expected an integer of at least 1, got 0"):
        step_time(program, images(32, 7), batch=2, repeats=0)
    detached = Task([(torch.randn(3, 32, 32), 0)] * 2, loss=lambda outputs, batch: outputs.detach().sum())
    with pytest.raises(InputError, match="expected a scalar tensor that depends on the network's outputs"):
        step_time(program, detached, batch=2)
    with pytest.raises(NotCounted, match="no parameter trains"):
        step_time(set_trainable(program, set()), images(32, 7), batch=2)
