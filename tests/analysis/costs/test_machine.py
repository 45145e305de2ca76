"""Prediction: the roofline's arithmetic, calibration on this machine, and that larger stages cost more."""

from __future__ import annotations

import collections
import dataclasses
import math

import pytest
import torch

from progc.analysis.costs.counting import Step
from progc.analysis.costs.machine import Machine, Rate, default_machine
from progc.analysis.costs.operations import KINDS, Operation, Recorder
from progc.errors import InputError
from progc.schedule import Point, Unfreeze
from progc.schedule.building import stage_program
from progc.schedule.calibration import calibrate
from progc.schedule.costing import predicted_seconds
from tests.zoo import captured


def test_seconds_are_those_of_the_roofline() -> None:
    rates = dict.fromkeys(KINDS, Rate(100.0, 10.0, 0.5))
    step = Step(
        1,
        {Operation("matmul", 300, 10): 2, Operation("norm", 0, 20): 1},
        {Operation("matmul", 100, 90): 1},
        0,
        ((5, 20), (5, 20)),
    )
    one = Machine("test", rates, Rate(math.inf, 10.0, 1.0))
    assert one.seconds(step, learning=False) == pytest.approx(2 * (0.5 + 3) + (0.5 + 2) + (0.5 + 9))
    assert one.seconds(step) == pytest.approx(one.seconds(step, learning=False) + 2 * (1 + 2))
    both = dataclasses.replace(one, overlap=True)
    assert both.seconds(step) == pytest.approx(2 * 3 + 2 + 9 + 2 * 2)
    assert predicted_seconds(step, machine=one) == one.seconds(step)
    with pytest.raises(InputError, match="machine test: a rate for `norm` is missing"):
        Machine("test", {kind: rate for kind, rate in rates.items() if kind != "norm"}, one.optimizer)


def test_operations_are_sorted_by_what_bounds_them() -> None:
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 1, 3, 3)
    with Recorder() as recorder:
        torch.conv2d(x, weight, groups=8)
        x.permute(0, 2, 3, 1)
        x.expand(3, -1, -1, -1, -1) + 1
        torch.nn.functional.embedding(torch.tensor([1, 2]), torch.randn(1000, 8))
        x.mul_(2)
    found = collections.defaultdict(list)
    for operation in recorder.found:
        found[operation.kind].append(operation)
    (grouped,) = found["grouped"]
    assert grouped.flops == 2 * 2 * 8 * 9 * 16 and grouped.bytes == 4 * (x.numel() + weight.numel() + 2 * 8 * 16)
    assert {operation.bytes for operation in found["view"]} == {0}
    size = 4 * x.numel()
    traffic = {operation.bytes for operation in found["pointwise"]}
    assert {size + 3 * size, 2 * size} <= traffic, "an expanded tensor is read once"
    assert 2 * 2 * 8 * 4 in traffic, "a lookup reads its rows, not the table"


def test_calibration_gives_rates_and_leaves_the_random_state() -> None:
    state = torch.random.get_rng_state()
    machine = calibrate(seconds=0.1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert machine.rates.keys() == set(KINDS)
    for rate in (*machine.rates.values(), machine.optimizer):
        assert rate.flops > 0 and rate.bytes > 0 and rate.call > 0 and math.isfinite(rate.call)
    assert math.isfinite(machine.rates["matmul"].flops) and math.isfinite(machine.rates["norm"].bytes)
    seconds = predicted_seconds(captured("own:conv")[1], machine=machine)
    assert seconds > 0 and math.isfinite(seconds)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_larger_stages_cost_more(device: str) -> None:
    full = captured("own:image")[1]
    machine = default_machine(device)
    points = [
        Point({"blocks": 2}, {}, (16, 16), Unfreeze.parse("prefix:1/2")),
        Point({"blocks": 2}, {}, (16, 16)),
        Point({"blocks": 2}, {}, (32, 32)),
        Point(),
    ]
    seconds = [predicted_seconds(stage_program(full, point), batch=512, machine=machine) for point in points]
    assert seconds == sorted(seconds) and len(set(seconds)) == 4
    assert predicted_seconds(full, batch=64, machine=machine, learning=False) < predicted_seconds(full, batch=64)
