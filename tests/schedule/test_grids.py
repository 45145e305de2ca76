"""The published grids of levels, as listed with the method (AutoProg, AutoProg-Zero)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.schedule.space import DEPTH, HEADS, RESOLUTION, factors, grid, rounded, split


@pytest.mark.parametrize(
    ("largest", "scale", "divisor", "expected"),
    [
        (224, 0.5, RESOLUTION, [128, 160, 192, 224]),
        (18, 0.5, DEPTH, [9, 12, 15, 18]),
        (224, 0.4, RESOLUTION, [96, 128, 192, 224]),
        (256, 0.25, RESOLUTION, [64, 128, 192, 256]),
        (4, 0.25, DEPTH, [1, 2, 3, 4]),
        (12, 0.5, HEADS, [6, 8, 10, 12]),
        (224, 1, RESOLUTION, [224, 224, 224, 224]),
    ],
)
def test_published_grids(largest: int, scale: float, divisor: int, expected: list[int]) -> None:
    assert grid(largest, scale, 4, divisor) == expected


@given(st.integers(1, 400), st.integers(1, 100), st.integers(2, 8), st.sampled_from([DEPTH, HEADS, RESOLUTION]))
def test_reference_is_the_published_expression_in_double_precision(
    largest: int, percent: int, levels: int, divisor: int
) -> None:
    scale = percent / 100
    step = (1.0 - scale) / (levels - 1)  # numpy.linspace computes start + k * step, and sets the last value
    values = [(scale + k * step) * largest for k in range(levels - 1)] + [1.0 * largest]
    expected = []
    for value in values:
        size = max(divisor, int(value + divisor / 2) // divisor * divisor)
        expected.append(size + divisor if size < 0.9 * value else size)
    assert grid(largest, scale, levels, divisor, "reference") == expected


def test_a_rounding_error_decides_a_tie_as_published_in_reference_only() -> None:
    assert grid(288, 0.5, 4, RESOLUTION, "reference") == [160, 192, 224, 288]
    assert grid(288, 0.5, 4, RESOLUTION) == [160, 192, 256, 288]
    assert grid(15, 0.5, 4, DEPTH, "reference") == [8, 10, 12, 15]
    assert grid(15, 0.5, 4, DEPTH) == [8, 10, 13, 15]


@given(st.fractions(min_value=Fraction(1, 100), max_value=1000), st.integers(1, 64))
def test_rounding_is_the_published_formula(value: Fraction, divisor: int) -> None:
    nearest = max(divisor, int(value + Fraction(divisor, 2)) // divisor * divisor)
    expected = nearest + divisor if nearest < Fraction(9, 10) * value else nearest
    assert rounded(value, divisor) == expected
    assert expected % divisor == 0
    assert expected >= Fraction(9, 10) * value


def test_decimals_are_exact() -> None:
    assert factors(0.4, 1, 4) == [Fraction(2, 5), Fraction(3, 5), Fraction(4, 5), Fraction(1)]
    assert factors(0.5, 1, 1) == [Fraction(1)]


def test_the_published_split_is_the_proportional_one_in_steps_of_two() -> None:
    depths = {total: split(total, [4, 14], [2, 1]) for total in (9, 12, 15, 18)}
    assert depths == {9: [2, 7], 12: [4, 8], 15: [4, 11], 18: [4, 14]}
    assert [split(total, [4, 14]) for total in (9, 12, 15, 18)] == [[2, 7], [3, 9], [3, 12], [4, 14]]


@given(st.lists(st.integers(1, 24), min_size=1, max_size=5), st.data())
def test_a_split_adds_up(full: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(max(1, sum(full) // 2), sum(full)))
    parts = split(total, full)
    assert sum(parts) == total
    assert all(part <= depth for part, depth in zip(parts, full, strict=True) if depth < max(full))
