"""Costs of stages: one definition of a point's program, counted once each; shares of time; the token-linear model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from progc.analysis.costs.counting import count, step_of
from progc.data.task import Task
from progc.errors import TargetError
from progc.ir.program import Program
from progc.schedule import Point, Stage, StageCost, Unfreeze, costing, stage_programs
from progc.schedule.building import stage_program
from progc.schedule.costing import counted_stages, predicted_seconds, token_linear
from progc.schedule.stage import time_shares
from tests.zoo import captured

POINTS = (
    Point({"blocks": 2}, {}, (16, 16), Unfreeze.parse("prefix:1/2")),
    Point({"blocks": 2}, {}, (16, 16), Unfreeze.parse("interleave:2/2")),
    Point({"blocks": 2}, {}, (16, 16)),
    Point({"blocks": 3}, {"mlp": 16}, (32, 32)),
    Point(),
)


def stages(points: tuple[Point, ...] = POINTS) -> list[Stage]:
    return [Stage(index, point, 1 / len(points)) for index, point in enumerate(points)]


def full() -> Program:
    return captured("own:image")[1]


def known(stage: Stage) -> StageCost:
    assert stage.cost is not None
    return stage.cost


def test_costs_are_those_of_the_points_programs() -> None:
    found = counted_stages(full(), stages(), batch=6)
    for stage in found:
        program = stage_program(full().deferred, stage.point)
        assert dataclasses.replace(known(stage), predicted_seconds=None) == count(program, batch=6)
        assert known(stage).predicted_seconds == pytest.approx(predicted_seconds(program, batch=6))
        assert known(stage).seconds is None
    flops = [known(stage).flops for stage in found]
    assert flops[0] < flops[1] == flops[2] < flops[3] < flops[4]
    assert [stage.point for stage in found] == list(POINTS)


def test_a_network_is_built_once_and_counted_once_per_trainable_set(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Point] = []
    counted: list[Any] = []

    def network(program: Program, point: Point, **options: Any) -> Any:
        assert all(tensor.is_meta for _, tensor in program.parameters()), "weights were given"
        built.append(point)
        return original(program, point, **options)

    def step(program: Program, batch: int | None = None) -> Any:
        counted.append(program)
        return step_of(program, batch)

    original = stage_programs.network
    monkeypatch.setattr(stage_programs, "network", network)
    monkeypatch.setattr(costing, "step_of", step)
    counted_stages(full(), stages())
    assert built == [POINTS[0].network, POINTS[3], POINTS[4]] and len(counted) == 4


def test_measured_stages_have_seconds_and_prediction() -> None:
    task = Task([(torch.randn(3, 32, 32), index % 7) for index in range(8)])
    found = counted_stages(full(), stages(POINTS[:3]), batch=4, measure=task)
    assert all((known(stage).seconds or 0) > 0 and known(stage).batch == 4 for stage in found)
    assert known(found[1]).seconds == known(found[2]).seconds, "the same stage is measured once"


def test_a_stage_is_counted_and_measured_at_its_own_batch() -> None:
    task = Task([(torch.randn(3, 32, 32), index % 7) for index in range(8)])
    given = [
        dataclasses.replace(stage, batch=size) for stage, size in zip(stages(POINTS[1:4]), (8, None, 2), strict=True)
    ]
    found = counted_stages(full(), given, batch=4, measure=task)
    assert [known(stage).batch for stage in found] == [8, 4, 2] and all(known(stage).seconds for stage in found)
    assert known(found[0]).flops == 2 * known(found[1]).flops  # the same network


def test_shares_of_time_prefer_what_was_measured() -> None:
    cost = count(full())
    first = dataclasses.replace(cost, forward_flops=10, backward_flops=20, predicted_seconds=2.0, seconds=1.0)
    last = dataclasses.replace(cost, forward_flops=30, backward_flops=60, predicted_seconds=2.0, seconds=9.0)

    def shares(**changes: Any) -> tuple[float, ...] | None:
        both = [dataclasses.replace(one, **changes) for one in (first, last)]
        return time_shares([Stage(index, Point(), 0.5, cost=one) for index, one in enumerate(both)])

    assert shares() == pytest.approx((0.1, 0.9))
    assert shares(seconds=None) == pytest.approx((0.5, 0.5))
    assert shares(seconds=None, predicted_seconds=None) == pytest.approx((0.25, 0.75))
    assert time_shares(stages()) is None and time_shares([]) is None


def test_costs_survive_json() -> None:
    (stage,) = counted_stages(full(), stages(POINTS[4:]))
    assert Stage.from_json(stage.to_json()) == stage
    old = {key: value for key, value in known(stage).to_json().items() if not key.endswith("seconds")}
    assert StageCost.from_json(old) == dataclasses.replace(known(stage), predicted_seconds=None)


DEEPER = ((128, 9, 1), (160, 12, 1), (192, 15, 1), (224, 18, 1))


@pytest.mark.parametrize(
    ("points", "bound"),
    [
        (DEEPER, 1.89),
        (((96, 9, 1), (128, 12, 1), (192, 15, 1), (224, 18, 1)), 2.08),
        (((64, 1, 1), (128, 1, 1), (192, 1, 1), (256, 1, 1)), 2.13),
        (((256, 1, 0.25), (256, 1, 0.5), (256, 1, 0.75), (256, 1, 1)), 1.14),
        (((256, 1, 0.25), (256, 1, 0.25), (256, 1, 0.25), (256, 1, 1)), 1.23),
        (((64, 1, 0.25), (64, 1, 0.25), (128, 1, 0.25), (256, 1, 1)), 3.12),
        (((64, 1, 0.25), (128, 1, 0.25), (128, 1, 0.25), (256, 1, 1)), 2.81),
    ],
)
def test_token_linear_gives_the_published_bounds(points: Any, bound: float) -> None:
    assert token_linear(points) == pytest.approx(bound, abs=0.006)


def test_a_point_that_the_network_cannot_have_is_refused() -> None:
    with pytest.raises(TargetError):
        counted_stages(full(), stages((Point({"blocks": 9}),)))
