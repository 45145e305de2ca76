"""Candidate sets of the published searches, exactly, and ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import InputError
from progc.schedule import Index, Space
from progc.search.candidates import (
    one_shot_candidates,
    reference_nested,
    reference_recycled,
    supernet,
    zero_shot_candidates,
)
from progc.transforms.depth.naming import interpolated
from progc.transforms.shrinking.removal import kept_positions
from tests.schedule.spaces import DEPTHS, DIT, LEVELS, SHAPES, VOLO


def _sizes(space: Space, candidates: list[Index]) -> list[tuple[int, int]]:
    """Resolution and depth, or trainable level, of each."""
    found = []
    for point in map(space.point, candidates):
        assert point.resolution is not None
        found.append((point.resolution[0], point.unfreeze.level if point.unfreeze else sum(point.depths.values())))
    return found


def test_one_shot_starts_from_first_middle_and_last() -> None:
    found = one_shot_candidates(VOLO, None, 0, 4, "reference")
    assert _sizes(VOLO, found) == [(r, d) for r in (128, 192, 224) for d in (9, 15, 18)]
    assert VOLO.point(supernet(found)) == VOLO.point(VOLO.last)


@pytest.mark.parametrize(
    ("current", "resolutions", "depths"),
    [
        ((128, 9), (128, 160), (12, 15, 18)),
        ((160, 12), (160, 192), (15, 18)),
        ((192, 15), (192, 224), (18,)),
        ((224, 9), (224,), (12, 15, 18)),
        ((192, 18), (192, 224), (18,)),
        ((224, 18), (224,), (18,)),
    ],
)
@pytest.mark.parametrize("stage", [1, 2])
def test_one_shot_depth_is_forced_to_grow(
    current: tuple[int, int], resolutions: tuple[int, ...], depths: tuple[int, ...], stage: int
) -> None:
    place = next(index for index in VOLO.places() if _sizes(VOLO, [index]) == [current])
    found = one_shot_candidates(VOLO, place, stage, 4, "reference")
    assert _sizes(VOLO, found) == [(r, d) for r in resolutions for d in depths]
    assert len(found) <= 6


@pytest.mark.parametrize("mode", ["reference", "default"])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_the_last_stage_is_the_full_network(mode: str, stages: int) -> None:
    for space in (VOLO, DIT, Space(unfreeze=SHAPES)):
        for choose in (one_shot_candidates, zero_shot_candidates):
            assert choose(space, Index(), stages - 1, stages, mode) == [space.last]


def test_one_shot_reference_does_not_more_than_double_the_depth() -> None:
    space = Space(depths=({"a": 4}, {"a": 9}, {"a": 12}, {"a": 18}))
    with pytest.raises(InputError, match="at most twice as deep as the smallest, got depths 4 and 18"):
        one_shot_candidates(space, None, 0, 4, "reference")
    assert len(one_shot_candidates(space, None, 0, 4)) == 3


def test_one_shot_by_default_depth_may_stay_and_width_is_chosen() -> None:
    found = one_shot_candidates(VOLO, Index(0, 0), 1, 4)
    assert _sizes(VOLO, found) == [(r, d) for r in (128, 160) for d in (9, 12, 15)]
    space = Space(depths=DEPTHS, widths=({"width": 192}, {"width": 288}, {"width": 384}))
    found = one_shot_candidates(space, Index(0, 1, 1), 1, 4)
    assert {(index.depth, index.width) for index in found} == {(d, w) for d in (1, 2, 3) for w in (1, 2)}
    assert {index.width for index in one_shot_candidates(space, Index(), 1, 4, "reference")} == {2}


def test_zero_shot_starts_from_the_first_and_the_one_before_the_middle() -> None:
    found = zero_shot_candidates(DIT, None, 0, 4, "reference")
    assert _sizes(DIT, found) == [(64, 1), (64, 2), (128, 1), (128, 2)]


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        ((0, 0), [(64, 1), (64, 2), (128, 1), (128, 2)]),
        ((1, 1), [(128, 2), (128, 3), (192, 2), (192, 3)]),
        ((3, 1), [(256, 2), (256, 3)]),
        ((3, 3), [(256, 4)]),
    ],
)
def test_zero_shot_stays_or_goes_one_level_up(current: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    place = Index(resolution=current[0], unfreeze=current[1])
    for stage in (1, 2):
        assert _sizes(DIT, zero_shot_candidates(DIT, place, stage, 4, "reference")) == expected


def test_zero_shot_reference_measures_an_unchanging_resolution_twice_at_the_first_stage() -> None:
    """The first stage takes two entries of a list without repeats, by position; later stages take a slice of it."""
    space = Space(unfreeze=LEVELS)
    for stage, current, expected in ((0, None, [0, 1, 0, 1]), (1, Index(), [0, 1]), (2, Index(unfreeze=3), [3])):
        found = zero_shot_candidates(space, current, stage, 4, "reference")
        assert [index.unfreeze for index in found] == expected
        unique = list(dict.fromkeys(expected))
        assert [index.unfreeze for index in zero_shot_candidates(space, current, stage, 4)] == unique


def test_zero_shot_looks_at_all_shapes_by_default() -> None:
    space = Space(unfreeze=SHAPES)

    def levels(current: Index | None, stage: int, mode: str = "default") -> set[str]:
        found = zero_shot_candidates(space, current, stage, 4, mode)
        return {str(space.point(index).unfreeze) for index in found}

    shapes = ("interleave", "prefix", "suffix")
    assert levels(None, 0) == {f"{shape}:{level}/4" for shape in shapes for level in (1, 2)}
    place = next(index for index in space.places() if str(space.point(index).unfreeze) == "prefix:2/4")
    assert levels(place, 1) == {f"{shape}:{level}/4" for shape in shapes for level in (2, 3)}
    assert levels(Index(unfreeze=2), 1) == {*(f"{shape}:3/4" for shape in shapes), "suffix:4/4"}  # full ones are one
    assert levels(None, 0, "reference") == {"interleave:1/4", "interleave:2/4"}


_SPACES = st.builds(
    lambda r, d, w, u: Space(
        tuple({"a": 4 + k} for k in range(d)) if d > 1 else (),
        tuple({"width": 4 + k} for k in range(w)) if w > 1 else (),
        tuple((8 + k, 8 + k) for k in range(r)) if r > 1 else (),
        SHAPES[:u],
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([0, 4, 8, 12]),
)


@given(_SPACES, st.integers(1, 6), st.data())
def test_candidates_are_there_differ_and_never_shrink(space: Space, stages: int, data: st.DataObject) -> None:
    for choose in (one_shot_candidates, zero_shot_candidates):
        current: Index | None = None
        for stage in range(stages):
            found = choose(space, current, stage, stages)
            points = [str(space.point(index)) for index in found]
            assert found
            assert len(set(points)) == len(points)
            if current is not None:
                for index in found:
                    assert all(new >= old for new, old in zip(index[:3], current[:3], strict=True))
                    if space.unfreeze:
                        assert space.unfreeze[index.unfreeze].share >= space.unfreeze[current.unfreeze].share
            current = data.draw(st.sampled_from(found))
        assert current == space.last


# -- index maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (6, 12, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (9, 12, [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]),
        (9, 15, [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]),
        (12, 18, [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11]),
        (4, 10, [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_published_layer_maps(old: int, new: int, expected: list[int]) -> None:
    assert interpolated(old, new) == expected


def test_layer_map_is_the_published_expression() -> None:
    for p in range(1, 40):
        for n in range(p, 4 * p + 3):
            q, rest = divmod(n, p)
            first = [i * p // (q * p) for i in range(n)]
            expected = [a if a < p - rest else (i + p - rest) * p // (q * p + p) for i, a in enumerate(first)]
            assert interpolated(p, n) == expected, (p, n)


@pytest.mark.parametrize(("old", "new", "expected"), [(9, 18, list(range(1, 18, 2))), (9, 12, [7, 9, 11])])
def test_new_layers_of_the_published_maps(old: int, new: int, expected: list[int]) -> None:
    base = reference_nested(old, old, new)
    assert [place for place in range(new) if place not in base] == expected


def test_what_is_evaluated_is_not_what_is_kept() -> None:
    """From 9 (7 layers of the second kind) to 12, 15 or 18 (8, 11, 14): the winner of 8 is another network."""
    assert reference_nested(8, 8, 14) == [0, 1, 2, 4, 6, 8, 10, 12]
    assert reference_recycled(7, 8, 14) == [0, 2, 4, 6, 8, 10, 12, 13]
    assert reference_nested(8, 14, 14) == reference_recycled(7, 14, 14) == list(range(14))


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_nested_layers_are_as_many_as_asked_and_nest(base: int, more: int, rest: int) -> None:
    depth, full = base + more, base + more + rest
    found = reference_nested(base, depth, full)
    assert len(found) == depth
    assert set(reference_nested(base, base, full)) <= set(found)
    assert reference_nested(base, base, full) == kept_positions(full, base, "spread")  # ours is the base


def test_nested_layers_refuse_sizes_out_of_order() -> None:
    with pytest.raises(InputError, match="0 < base <= depth <= full, got 4, 3, 8"):
        reference_nested(4, 3, 8)
