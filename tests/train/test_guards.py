"""Which steps are left out, and when a run ends."""

from __future__ import annotations

import json
import math

import pytest

from progc.errors import CheckError
from progc.train.settings import Settings
from progc.train.stepping import Guard

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF)])
def test_what_is_not_finite_ends_the_run_or_is_left_out(loss: float, norm: float) -> None:
    with pytest.raises(CheckError, match="is not finite"):
        Guard(Settings()).judge(loss, norm)
    assert "is not finite" in (Guard(Settings(nan="skip")).judge(loss, norm) or "")


def test_too_many_in_a_row_end_the_run() -> None:
    guard = Guard(Settings(nan="skip", max_skipped=2))
    for _ in range(3):  # one good step restarts the count
        assert guard.judge(NAN, 1.0) is not None and guard.judge(NAN, 1.0) is not None
        assert guard.judge(1.0, 1.0) is None
    assert guard.judge(NAN, 1.0) is not None and guard.judge(NAN, 1.0) is not None
    with pytest.raises(CheckError, match="3 steps in a row"):
        guard.judge(NAN, 1.0)


def losses(count: int) -> list[float]:
    return [1.0 + 0.1 * (-1) ** step for step in range(count)]


def test_a_spike_is_left_out_and_does_not_count_as_usual() -> None:
    guard = Guard(Settings(spike=6.0))
    assert all(guard.judge(loss, 1.0) is None for loss in losses(20))
    assert "is a spike" in (guard.judge(5.0, 1.0) or "")
    assert "is a spike" in (guard.judge(5.0, 1.0) or "")
    assert guard.judge(1.05, 1.0) is None


def test_behind_a_boundary_nothing_is_a_spike_at_first() -> None:
    guard = Guard(Settings(spike=6.0))
    assert all(guard.judge(loss, 1.0) is None for loss in losses(20))
    guard.boundary()
    assert all(guard.judge(5 * loss, 1.0) is None for loss in losses(20))


def test_a_guard_that_is_restored_judges_alike() -> None:
    guard, other = Guard(Settings(spike=6.0)), Guard(Settings(spike=6.0))
    for loss in losses(20):
        guard.judge(loss, 1.0)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert [one.judge(value, 1.0) for one in (guard, other) for value in (1.05, 5.0)] == 2 * [
        None, guard.judge(5.0, 1.0),
    ]  # fmt: skip
