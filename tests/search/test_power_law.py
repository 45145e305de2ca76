"""The power law of loss against time: the published fit and choice, and ours."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from progc.search.power_law import chosen, exchange_rate, least_squares, log_fit, published

TABLES = {
    "nine candidates": (
        [6.31, 6.02, 5.88, 6.20, 5.91, 5.79, 6.15, 5.86, 5.71],
        [0.081, 0.118, 0.152, 0.124, 0.190, 0.249, 0.170, 0.262, 0.351],
    ),
    "seconds above 1": ([2.31, 2.18, 2.11, 2.02], [1.7, 2.4, 3.1, 4.9]),
    "slower is worse": ([1.10, 1.15, 1.31], [0.02, 0.03, 0.05]),
    "two": ([1.20, 1.10], [0.10, 0.13]),
    "milliseconds": ([0.334, 0.328, 0.329], [0.0092, 0.0117, 0.0142]),
    "on a law": ([3 * t**-0.25 for t in (0.1, 0.2, 0.4, 0.8)], [0.1, 0.2, 0.4, 0.8]),
}


@pytest.mark.parametrize("name", TABLES)
def test_least_squares_is_scipys_curve_fit(name: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    losses, times = TABLES[name]
    fit = least_squares(losses, times)
    with warnings.catch_warnings():  # two points leave no covariance
        warnings.simplefilter("ignore")
        found, _ = optimize.curve_fit(lambda t, a1, a2: a2 * t**a1, times, losses, [1.0, 1.0])
    assert fit.exponent == pytest.approx(found[0], rel=1e-6, abs=1e-6)
    assert fit.factor == pytest.approx(found[1], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_least_squares_is_a_minimum(name: str) -> None:
    losses, times = TABLES[name]
    fit = least_squares(losses, times)

    def cost(exponent: float, factor: float) -> float:
        return sum((factor * t**exponent - loss) ** 2 for loss, t in zip(losses, times, strict=True))

    for step in (1e-4, -1e-4):
        assert cost(fit.exponent, fit.factor) <= cost(fit.exponent + step, fit.factor)
        assert cost(fit.exponent, fit.factor) <= cost(fit.exponent, fit.factor * (1 + step))


def test_published_choice_by_hand() -> None:
    # L = 2 T^-1 through the first and the last of three times; the middle one lies below by its residual.
    losses, times = [2.0, 0.9, 0.5], [1.0, 2.0, 4.0]
    choice = published(losses, times)
    rows = torch.tensor(times, dtype=torch.float64)
    best = min(
        (float(((a2 * rows**a1 - torch.tensor(losses)) ** 2).sum()), a1, a2)
        for a1 in torch.linspace(-1.3, -0.9, 201).tolist()
        for a2 in torch.linspace(1.9, 2.1, 101).tolist()
    )
    assert choice.alpha == pytest.approx(-best[1], abs=4e-3)
    expected = [loss * t**choice.alpha for loss, t in zip(losses, times, strict=True)]
    assert choice.totals == pytest.approx(expected, rel=1e-12)
    assert choice.winner == expected.index(min(expected)) == 1


def test_published_where_slower_is_not_better_the_lowest_loss_wins() -> None:
    choice = published([1.3, 1.1, 1.5], [1.0, 2.0, 3.0])
    assert choice.alpha == 0.0 and choice.winner == 1 and choice.totals == (1.3, 1.1, 1.5)
    assert choice.reason == "lowest loss, because slower is not better"


def test_published_times_in_another_unit_change_nothing_but_totals() -> None:
    losses, times = TABLES["nine candidates"]
    one, other = published(losses, times), published(losses, [1000 * t for t in times])
    assert one.winner == other.winner and one.alpha == pytest.approx(other.alpha, rel=1e-6)


def test_published_of_equal_ones_the_first_wins() -> None:
    assert published([1.0, 1.0], [2.0, 2.0]).winner == 0
    assert published([1.0], [2.0]).winner == 0


def test_log_fit_is_a_line_through_logarithms() -> None:
    losses, times = TABLES["nine candidates"]
    fit = log_fit(losses, times)
    assert fit is not None
    x = torch.tensor(times, dtype=torch.float64).log()
    y = torch.tensor(losses, dtype=torch.float64).log()
    solution = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution.flatten()
    assert fit.exponent == pytest.approx(float(solution[0]), rel=1e-9)
    assert math.log(fit.factor) == pytest.approx(float(solution[1]), rel=1e-9)
    exact = log_fit(*TABLES["on a law"])
    assert exact is not None and exact.alpha == pytest.approx(0.25) and exact.factor == pytest.approx(3.0)


@pytest.mark.parametrize("times", [[1.0, 2.0], [1.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0]])
def test_log_fit_needs_three_different_times(times: list[float]) -> None:
    assert log_fit([2.0, 1.5, 1.0][: len(times)], times) is None


def test_chosen_lies_furthest_below_the_trend() -> None:
    times = [0.1, 0.2, 0.4, 0.8]
    losses = [[3 * t**-0.25] * 4 for t in times]
    losses[2] = [0.9 * loss for loss in losses[2]]
    choice = chosen(losses, times)
    assert choice.winner == 2 and choice.alpha == pytest.approx(0.25, abs=0.03)


def test_two_candidates_do_not_tie() -> None:
    """A line through two points would call them equal; the rate at which training on lowers the loss decides."""
    better = [[2.0, 2.1], [1.6, 1.68]]
    assert chosen(better, [1.0, 2.0], exchange=0.1).winner == 1
    assert chosen(better, [1.0, 2.0], exchange=0.5).winner == 0
    assert chosen(better, [1.0, 2.0]).winner == 1


def test_differences_within_the_noise_are_none() -> None:
    noisy = [[1.0, 1.4, 0.6, 1.2], [1.1, 1.1, 0.7, 1.0], [1.3, 1.6, 1.1, 1.5]]
    choice = chosen(noisy, [1.0, 2.0, 3.0])
    assert choice.alpha == 0.0 and choice.totals.index(min(choice.totals)) == 1
    assert choice.winner == 0 and choice.reason == "fastest of 2 candidates that differ in loss by no more than noise"
    steady = [[1.0, 1.4, 0.6, 1.2], [0.9, 1.3, 0.5, 1.1], [1.3, 1.6, 1.1, 1.5]]
    assert chosen(steady, [1.0, 2.0, 3.0]).winner == 1  # always by .1 on the same batch: no noise


def test_equal_candidates_go_to_the_fastest_and_negative_losses_have_no_power_law() -> None:
    assert chosen([[1.0, 2.0]] * 3, [3.0, 1.0, 2.0]).winner == 1
    choice = chosen([[-1.0, -1.1], [-3.0, -3.1], [-2.0, -2.1]], [1.0, 2.0, 3.0], exchange=0.5)
    assert choice.winner == 1 and choice.alpha == 0.0


def test_exchange_rate() -> None:
    steps = [0, 10, 20, 40]
    assert exchange_rate([9.9, *(5 * s**-0.3 for s in steps[1:])], steps) == pytest.approx(0.3)
    assert exchange_rate([1.0, 1.1], [10, 20]) == 0.0
    assert exchange_rate([1.0, 0.9], [0, 20]) is None
