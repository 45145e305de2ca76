"""The learning rate as a function of progress."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import InputError
from progc.train.settings import Settings, factor, set_rates


def test_it_rises_and_falls_as_published() -> None:
    settings = Settings(warmup=0.1, min_lr=0.1)
    found = [factor(settings, step, 100) for step in range(100)]
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.1 + 0.9 / 2, abs=0.01)  # half of the cosine
    assert found[-1] == pytest.approx(0.1, abs=1e-3)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_it_rises_from_a_floor_and_cools_down_at_the_lowest_rate() -> None:
    settings = Settings(lr=1.6e-3, warmup=0.2, warmup_floor=1e-6, min_lr=1e-5 / 1.6e-3, cooldown=10)
    rates = [1.6e-3 * factor(settings, step, 100) for step in range(110)]
    assert rates[:20] == pytest.approx([1e-6 + (1.6e-3 - 1e-6) * step / 20 for step in range(20)])
    assert rates[20] == pytest.approx(1.6e-3) and rates[100:] == pytest.approx([1e-5] * 10)
    plain = Settings(lr=1.6e-3, warmup=0.2, min_lr=1e-5 / 1.6e-3)
    assert rates[20:100] == [1.6e-3 * factor(plain, step, 100) for step in range(20, 100)]


def test_wsd_is_stable_and_then_decays() -> None:
    settings = Settings(lr_schedule="wsd", warmup=0.1, decay=0.2, min_lr=0.1)
    found = [factor(settings, step, 100) for step in range(101)]
    assert found[9:81] == pytest.approx([1.0] * 72) and found[90] == pytest.approx(0.1 + 0.9 / 2)
    assert found[80:] == pytest.approx([0.1 + 0.9 * (100 - step) / 20 for step in range(80, 101)])
    plain = Settings(lr_schedule="wsd", warmup=0.1, min_lr=0.1)  # 0.2 by default
    assert found == [factor(plain, step, 100) for step in range(101)]


def test_linear_to_zero_ends_at_zero() -> None:
    settings = Settings(lr_schedule="linear-to-zero", warmup=0.0)
    assert [factor(settings, step, 10) for step in range(11)] == pytest.approx([1 - step / 10 for step in range(11)])


def test_stages_have_factors_of_their_own() -> None:
    settings = Settings(stage_lr=(1.0, 0.5), rewarm=2)
    plain = Settings(rewarm=2)
    assert factor(settings, 30, 40, 20, 0) == factor(plain, 30, 40, 20, 1)
    assert factor(settings, 20, 40, 20, 1) == factor(plain, 20, 40, 20) / 2
    settings.check_stages(2)
    plain.check_stages(3)
    with pytest.raises(InputError, match="stage_lr: expected one factor for each of the 3 stages, got 2; give as many"):
        settings.check_stages(3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_floor": 2e-3}, "warmup_floor: expected a learning rate from 0 to lr, which is 0.001, got 0.002"),
        ({"warmup_floor": -1.0}, "warmup_floor: expected a learning rate from 0 to lr"),
        ({"decay": 0.2}, "decay: only the schedule wsd has it, and lr_schedule is cosine; use wsd, or leave out decay"),
        ({"lr_schedule": "wsd", "decay": 0.0}, "decay: expected a fraction of the run above 0 and at most 1, got 0.0"),
        ({"lr_schedule": "wsd", "decay": 0.8, "warmup": 0.3}, "warmup and decay take 1.1 of the run together"),
        ({"lr_schedule": "linear-to-zero", "min_lr": 0.1}, "min_lr: the schedule linear-to-zero ends at 0, got 0.1"),
        ({"stage_lr": (1.0, 0.0)}, "stage_lr: expected factors above 0, got 0.0"),
        ({"cooldown": 2}, "cooldown: min_lr is 0, so nothing would train"),
        ({"cooldown": -1, "min_lr": 0.1}, "cooldown: expected an integer of at least 0"),
    ],
)
def test_floors_and_cool_downs_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**values)


def test_behind_a_boundary_it_rises_again_to_where_it_would_be() -> None:
    settings = Settings(warmup=0.0, rewarm=4)
    plain = [factor(settings, step, 40) for step in range(40)]
    again = [factor(settings, step, 40, boundary=20) for step in range(20, 40)]
    assert again[:4] == pytest.approx([plain[20 + k] * (k + 1) / 4 for k in range(4)])
    assert again[4:] == plain[24:]


@given(
    shape=st.sampled_from(["constant", "linear", "cosine", "wsd", "linear-to-zero"]),
    warmup=st.floats(0, 0.8),
    least=st.floats(0, 1),
    total=st.integers(1, 1000),
    part=st.floats(0, 1, exclude_max=True),
)
def test_it_stays_between_zero_and_the_peak(shape: str, warmup: float, least: float, total: int, part: float) -> None:
    settings = Settings(lr_schedule=shape, warmup=warmup, min_lr=0.0 if shape == "linear-to-zero" else least)
    assert 0.0 <= factor(settings, int(part * total), total) <= 1.0 + 1e-12


def test_groups_keep_peaks_of_their_own() -> None:
    weight, bias = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [bias], "lr": 0.5}], lr=1.0)
    for value in (0.5, 0.25, 1.0):
        set_rates(optimizer, value)
        assert [group["lr"] for group in optimizer.param_groups] == [value, 0.5 * value]
