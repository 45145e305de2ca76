"""The manual schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import InputError
from progc.schedule import Space
from progc.search.plan import level, linear
from tests.schedule.spaces import DIT, SHAPES, VOLO


def test_published_schedules_position_by_position() -> None:
    points = [VOLO.point(place) for place in linear(VOLO, 4)]
    assert [(point.resolution, point.depths["blocks"]) for point in points] == [
        ((128, 128), 9), ((160, 160), 12), ((192, 192), 15), ((224, 224), 18)
    ]  # fmt: skip
    points = [DIT.point(place) for place in linear(DIT, 4)]
    assert [str(point) for point in points] == [
        "64 interleave:1/4", "128 interleave:2/4", "192 interleave:3/4", "256 interleave:4/4"
    ]  # fmt: skip


def test_one_stage_is_the_full_network() -> None:
    assert linear(VOLO, 1) == [VOLO.last]


def test_of_several_shapes_the_first_unfreezes() -> None:
    space = Space(unfreeze=SHAPES)
    points = [space.point(place) for place in linear(space, 4)]
    assert [point.unfreeze.level for point in points if point.unfreeze] == [1, 2, 3, 4]
    assert {point.unfreeze.shape for point in points[:3] if point.unfreeze} == {"interleave"}


@pytest.mark.parametrize(
    ("stages", "levels", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (4, 1, [0, 0, 0, 0]),
        (4, 2, [0, 0, 1, 1]),
        (3, 2, [0, 0, 1]),
        (4, 3, [0, 1, 1, 2]),
        (2, 4, [0, 3]),
        (3, 4, [0, 1, 3]),
    ],
)
def test_other_numbers_of_levels(stages: int, levels: int, expected: list[int]) -> None:
    assert [level(stage, stages, levels) for stage in range(stages)] == expected


@given(st.integers(2, 30), st.integers(1, 30))
def test_levels_rise_from_first_to_last(stages: int, levels: int) -> None:
    found = [level(stage, stages, levels) for stage in range(stages)]
    assert found[0] == 0
    assert found[-1] == levels - 1
    assert found == sorted(found)
    if stages >= levels:
        assert set(found) == set(range(levels))


def test_no_stage() -> None:
    with pytest.raises(InputError, match="expected an integer of at least 1, got 0"):
        linear(VOLO, 0)
