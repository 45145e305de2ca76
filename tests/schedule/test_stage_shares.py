"""Shares of the stages as users say them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import InputError
from progc.schedule.stage_shares import begins, checked_shares, stage_shares, stages_from_text


@pytest.mark.parametrize(
    "said", ["0.5,0.2,0.1,0.2", " .5, 0.2,1e-1 ,0.2", "50,20,10,20", [5, 2, 1, 2], [50.0, 20, 10, 20]]
)
def test_parts_and_proportions(said: Any) -> None:
    assert stage_shares(checked_shares(said), 4) == pytest.approx((0.5, 0.2, 0.1, 0.2), abs=1e-15)


def test_rounded_parts_sum_to_one() -> None:
    for said in ("0.33,0.33,0.33", "0.34,0.33,0.33", [1 / 3] * 3):
        shares = checked_shares(said)
        assert isinstance(shares, tuple) and abs(math.fsum(shares) - 1) < 1e-12
    assert checked_shares("1") == (1.0,)


def test_named_shares() -> None:
    assert stage_shares(None, 4) == stage_shares(checked_shares("even"), 4) == (0.25,) * 4
    assert stage_shares(checked_shares("late"), 3) == (0.5, 0.25, 0.25)
    assert stage_shares(checked_shares("late:0.7"), 4) == (0.7, 0.1, 0.1, 0.1)
    assert stage_shares("late", 1) == (1.0,)
    assert checked_shares("late:0.50") == "late" and checked_shares(None) is None


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_checked_shares_are_read_again(numbers: list[int]) -> None:
    shares = checked_shares(numbers)
    assert checked_shares(shares) == pytest.approx(shares, abs=1e-12)
    assert begins(stage_shares(shares, len(numbers)), 10**7, "steps")[0] == 0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("0.5,0.2,0.1", "shares `0.5,0.2,0.1`: they sum to 0.8; give parts of the run that sum to 1, or whole numbers"),
        ("0.5,0.25,0.27", "they sum to 1.02"),
        ("2.5,1", "they sum to 3.5"),
        ("0.5,0,0.5", "expected numbers above 0, got 0"),
        ("0.5,-0.5,1", "expected parts of the run that sum to 1"),
        ("0.5,x", "expected parts of the run that sum to 1"),
        ("0.5,,0.5", "expected parts of the run that sum to 1"),
        ("", "expected parts of the run that sum to 1"),
        ("1e999,1", "expected numbers above 0, got inf"),
        ([], "got []"),
        ([0.5, "0.5"], "got [0.5, '0.5']"),
        ([True, 1], "got [True, 1]"),
        ([float("nan"), 1], "got nan"),
        (0.5, "got 0.5"),
        ("later", "unknown name; did you mean late?"),
        ("early", "unknown name"),
        ("late:1", "expected late:PART with a part of the run between 0 and 1"),
        ("late:", "expected late:PART"),
        ("even:0.5", "expected late:PART"),
    ],
)
def test_wrong_shares_are_refused_in_one_line(said: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        checked_shares(said)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_stage_without_a_step_is_named() -> None:
    assert begins((0.7, 0.1, 0.2), 10, "epochs") == [0, 7, 8]
    with pytest.raises(InputError, match="4 epochs are too few for 3 stages of these shares: stage 1 would have none"):
        begins((0.75, 0.05, 0.2), 4, "epochs")
    with pytest.raises(InputError, match="2 steps are too few for 3 stages; give at least one for each stage"):
        begins((0.7, 0.1, 0.2), 2, "steps")


def test_the_number_of_stages_on_the_command_line() -> None:
    assert [stages_from_text(text, 100) for text in (None, "auto", "3", "100")] == [None, "auto", 3, 100]
    for text in ("0", "101", "x", "-1", "2.0"):
        with pytest.raises(InputError, match=rf"--stages {text}: expected an integer from 1 to 100, or auto"):
            stages_from_text(text, 100)
    with pytest.raises(InputError, match="expected an integer of at least 1, or auto"):
        stages_from_text("0")
