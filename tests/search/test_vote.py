"""Votes: the published one against tables worked out by hand and by enumeration, ours against what it promises."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.search.vote import PRICE, Vote, published, ranks, worth

Orders = tuple[tuple[int, ...], tuple[int, ...]]


def orders(count: int) -> Iterator[Orders]:
    """All pairs of scores 1..count of two proxies."""
    every = list(itertools.permutations(range(1, count + 1)))
    yield from itertools.product(every, every)


def wins(count: int, vote: Callable[[Orders], Vote]) -> list[int]:
    """How often each candidate wins over all pairs of orders."""
    found = collections.Counter(vote(pair).winner for pair in orders(count))
    return [found[place] for place in range(count)]


# -- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 3.0, 1.0], (1, 1, 3)),
        ([1.0, 3.0, 2.0], (3, 1, 2)),
        ([1.0, 1.0, 1.0], (1, 1, 1)),
        ([5.0, 2.0, 2.0, 1.0], (1, 2, 2, 4)),
        ([2.0, 2.0 + 0.9e-6, 2.0 + 1.8e-6], (3, 1, 1)),  # the last is tied with the first of its group, not with it
        ([2.0, 2.0 + 0.4e-6, 2.0 + 0.8e-6], (1, 1, 1)),
        ([math.nan, 1.0, 2.0], (3, 2, 1)),
        ([math.nan, math.nan, 2.0], (2, 2, 1)),
        ([-math.inf, math.nan, -math.inf, 0.0], (2, 4, 2, 1)),
        ([math.inf, math.inf, 1e300], (1, 1, 3)),
        ([], ()),
    ],
)
def test_competition_ranks(values: list[float], expected: tuple[int, ...]) -> None:
    assert ranks(values) == expected


def test_ranks_of_times_and_of_scores_that_are_close() -> None:
    assert ranks([0.3, 0.1, 0.2], smallest=True) == (3, 1, 2)
    assert ranks([math.nan, 0.1], smallest=True) == (2, 1)
    assert ranks([1000.0, 999.5, 990.0], absolute=0.0, relative=1e-3) == (1, 1, 3)
    assert ranks([-1000.0, -1000.5, -1.0], absolute=0.0, relative=1e-3) == (2, 2, 1)
    assert ranks([0.0, 1e-9], absolute=0.0, relative=1e-3) == (2, 1)


# -- the published vote -----------------------------------------------------------------------------------------------


def test_published_vote_against_a_table_worked_out_by_hand() -> None:
    # DiT, stage 0: (64, 1), (64, 2), (128, 1), (128, 2); NTK ties the second and the third, times the first two.
    vote = published(
        [0.11, 0.11 + 5e-7, 0.30, 0.34],
        {"ntk": [-900.0, -700.0, -700.0 - 1e-7, -650.0], "zico": [210.0, 250.0, 210.0, 280.0]},
    )
    assert vote.ranks == {"time": (1, 1, 3, 4), "ntk": (4, 2, 2, 1), "zico": (3, 2, 3, 1)}
    assert vote.totals == (4.5, 3.0, 5.5, 5.0)
    assert vote.winner == 1 and vote.tied == ()


def test_a_tie_goes_to_the_fastest_also_within_the_tolerance_and_out_of_order() -> None:
    vote = published([0.4, 0.2], {"ntk": [2.0, 1.0], "zico": [2.0, 1.0]})
    assert vote.totals == (3.0, 3.0) and vote.winner == 1 and vote.tied == (0,)
    vote = published([0.2 + 1e-7, 0.2], {"ntk": [1.0, 1.0], "zico": [1.0, 1.0]})
    assert vote.ranks["time"] == (1, 1) and vote.winner == 1  # equal ranks; the stable order is that of the times
    vote = published([0.2, 0.2, 0.2], {"ntk": [1.0, 1.0, 1.0], "zico": [1.0, 1.0, 1.0]})
    assert vote.winner == 0


def test_scores_that_are_nan_rank_last_and_do_not_win_by_it() -> None:
    vote = published([0.1, 0.1], {"ntk": [math.nan, -5.0], "zico": [1.0, 1.0]})
    assert vote.ranks["ntk"] == (2, 1) and vote.winner == 1


@pytest.mark.parametrize(("count", "expected"), [(2, [4, 0]), (3, [31, 5, 0]), (4, [459, 106, 11, 0])])
def test_published_vote_over_all_proxy_orders(count: int, expected: list[int]) -> None:
    times = [float(place) for place in range(1, count + 1)]
    assert wins(count, lambda pair: published(times, {"ntk": pair[0], "zico": pair[1]})) == expected


def test_weights_of_the_published_vote_can_be_changed() -> None:
    scores = {"ntk": [1.0, 2.0], "zico": [1.0, 2.0]}
    assert published([0.1, 0.2], scores).winner == 0
    assert published([0.1, 0.2], scores, {"time": 0.5}).winner == 1


# -- quality against time ---------------------------------------------------------------------------------------------

TIMES = [
    [0.875, 0.917],  # interleaved levels 1 and 2 of 4, to the end of training
    [0.53, 0.625],  # images of 64 and of 128 pixels of 256
    [0.875, 0.917, 0.958],
    [0.53, 0.625, 0.78, 1.0],
    [0.5, 0.5, 0.9],
    [0.1, 0.11, 1.0],  # far apart: the price follows
    [1.0, 1.0, 1.0, 1.0],
]


@pytest.mark.parametrize("times", TIMES, ids=str)
def test_every_candidate_wins_for_some_proxy_orders(times: list[float]) -> None:
    found = wins(len(times), lambda pair: worth(times, {"ntk": pair[0], "zico": pair[1]}))
    assert all(found) and sum(found) == math.factorial(len(times)) ** 2


@pytest.mark.parametrize("times", TIMES, ids=str)
def test_the_best_in_all_proxies_wins_within_its_budget(times: list[float]) -> None:
    lost = 0
    for pair in orders(len(times)):
        vote = worth(times, {"ntk": pair[0], "zico": pair[1]})
        best = [place for place in range(len(times)) if all(scores[place] == len(times) for scores in pair)]
        if not best or best[0] == vote.winner:
            continue
        lost += 1
        assert vote.price is not None
        behind = (vote.ranks["ntk"][vote.winner] + vote.ranks["zico"][vote.winner]) / 2 - 1
        assert times[best[0]] > times[vote.winner] * vote.price**behind
    assert not lost or len(times) > 2  # of two candidates the better always wins


def test_of_two_candidates_the_larger_wins_where_both_proxies_prefer_it() -> None:
    assert wins(2, lambda pair: worth([0.875, 0.917], {"ntk": pair[0], "zico": pair[1]})) == [3, 1]


def test_numbers_of_the_method_card() -> None:
    def found(times: Sequence[float]) -> list[int]:
        return wins(len(times), lambda pair: worth(times, {"ntk": pair[0], "zico": pair[1]}))

    assert found([0.875, 0.917, 0.958]) == [20, 10, 6]
    assert found([0.875, 0.917, 0.958, 1.0]) == [266, 162, 98, 50]


def test_total_is_time_times_the_price_of_lost_ranks() -> None:
    vote = worth([0.5, 0.6, 0.9], {"ntk": [1.0, 2.0, 3.0], "zico": [2.0, 3.0, 1.0]}, price=1.15)
    assert vote.ranks == {"time": (1, 2, 3), "ntk": (3, 2, 1), "zico": (2, 1, 3)}
    assert vote.totals == pytest.approx((0.5 * 1.15**1.5, 0.6 * 1.15**0.5, 0.9 * 1.15))
    assert vote.winner == 0 and vote.price == 1.15
    assert worth([0.5, 0.6, 0.9], {"ntk": [1.0, 2.0, 3.0], "zico": [2.0, 3.0, 1.0]}, price=1.3).winner == 1


def test_a_price_of_one_is_the_fastest_and_a_weight_of_zero_is_no_vote() -> None:
    scores = {"ntk": [1.0, 2.0, 3.0], "zico": [3.0, 1.0, 2.0]}
    assert worth([0.9, 0.8, 1.0], scores, price=1.0).winner == 1
    assert worth([1.0, 1.0, 1.0], scores, {"zico": 0.0}).winner == 2
    assert worth([1.0, 1.0, 1.0], scores, {"ntk": 0.0}).winner == 0


def test_ties_go_to_the_better_rank_then_to_the_shorter_time_then_to_the_first() -> None:
    assert worth([1.0, 1.1], {"ntk": [1.0, 2.0]}, price=1.1).winner == 1
    vote = worth([1.0, 0.5, 0.5], {"ntk": [3.0, 1.0, 1.0], "zico": [3.0, 1.0, 1.0]}, price=2.0)
    assert vote.totals == (1.0, 1.0, 1.0) and vote.winner == 0 and vote.tied == (1, 2)
    vote = worth([1.0, 0.8, 0.8], {"ntk": [1.0, 2.0, 2.0]}, price=1.1)
    assert vote.winner == 1 and vote.tied == (2,)
    vote = worth([1.0, 1.0], {"ntk": [2.0, 2.0]})
    assert vote.winner == 0 and vote.tied == (1,)


def test_scores_apart_by_rounding_alone_are_tied_and_the_shorter_time_wins() -> None:
    assert worth([0.8, 0.9], {"ntk": [-915.3, -915.2]}).winner == 0
    assert worth([0.85, 0.9], {"ntk": [-915.3, -905.2]}).winner == 1


@given(
    st.lists(st.floats(0.5, 1.0), min_size=2, max_size=6).flatmap(
        lambda times: st.tuples(st.just(times), *[st.permutations(range(len(times))) for _ in range(3)])
    )
)
def test_promises_hold_for_any_times(drawn: tuple[list[float], list[int], list[int], list[int]]) -> None:
    times, *scores = drawn
    vote = worth(times, {str(place): [float(s) for s in own] for place, own in enumerate(scores)})
    ordered = sorted(times)
    assert vote.price is not None and vote.price >= PRICE
    assert all(b <= a * vote.price * (1 + 1e-12) for a, b in zip(ordered, ordered[1:], strict=False))
    # The candidate with the best rank everywhere, and times sorted behind it, is chosen whichever it is.
    for chosen in range(len(times)):
        behind = sorted((place for place in range(len(times)) if place != chosen), key=lambda p: -times[p])
        order = [chosen, *behind]
        unanimous = [float(len(times) - order.index(place)) for place in range(len(times))]
        assert worth(times, {"a": unanimous, "b": unanimous}).winner == chosen
