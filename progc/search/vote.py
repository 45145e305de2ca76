"""Chooses a candidate from scores: the vote of ranks of AutoProg-Zero, and one in which quality has a price in time.

`published` (AutoProg-Zero, Li et al. 2024) adds the ranks of the time of a step and of each proxy, with weights 1 and
1/2 each; a tie goes to the fastest. Larger networks take more time, so the fastest of m candidates starts with a lead
of m - 1 ranks over the slowest, which is all that the proxies can give. The slowest never wins, and of two candidates
the smaller one always does.

`worth` ranks only quality, because the scales of proxies have no meaning. It takes the predicted time to the end of
training as a number. A rank of quality is worth a factor of that time (docs/adr/0017-zero-shot.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

TOLERANCE = 1e-6
"""`published`: times and scores are tied if they differ by at most this."""

CLOSE = 1e-3
"""Scores are tied if they differ by at most this share of the better one: float32 sums have rounding of this size."""

PRICE = 1.1
"""Smallest factor of the time to the end of training that one rank of quality is worth."""

_EQUAL = 1e-9
"""Totals are tied if they differ by at most this share."""


@dataclasses.dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
        winner: index of the chosen candidate.
        ranks: by name of the score, one rank per candidate; 1 is the best.
        totals: the number that decides, one per candidate; the winner has the smallest one.
        tied: indices of other candidates with the winner's total.
        price: see `worth`; None for `published`.
    """

    winner: int
    ranks: Mapping[str, tuple[int, ...]]
    totals: tuple[float, ...]
    tied: tuple[int, ...]
    price: float | None = None


def ranks(
    values: Sequence[float], *, smallest: bool = False, absolute: float = TOLERANCE, relative: float = 0.0
) -> tuple[int, ...]:
    """Returns competition ranks (1, 1, 3): the largest value is first, or the smallest.

    A value is compared with the *first* one of its tie, so that a long row of small steps is not a tie. NaN is last.

    Args:
        values: one per candidate; infinities are allowed.
        smallest: whether smaller values are better.
        absolute, relative: largest difference of a value from the first one of its tie; `relative` is a share of it.
    """
    finite = [place for place, value in enumerate(values) if not math.isnan(value)]
    order = sorted(finite, key=lambda place: values[place] if smallest else -values[place])
    found = [len(order) + 1] * len(values)
    first = math.nan
    for position, place in enumerate(order, 1):
        value = values[place]
        near = max(absolute, relative * abs(first)) if math.isfinite(first) else 0.0
        if position > 1 and (value == first or abs(value - first) <= near):
            found[place] = found[order[position - 2]]
        else:
            found[place], first = position, value
    return tuple(found)


def published(
    times: Sequence[float], proxies: Mapping[str, Sequence[float]], weights: Mapping[str, float] | None = None
) -> Vote:
    """Returns the vote of AutoProg-Zero: the smallest weighted sum of ranks wins, a tie goes to the fastest.

    Args:
        times: seconds per step, one per candidate.
        proxies: by name, one score per candidate; higher is better.
        weights: by name, including `time`; by default 1 for the time and 1/2 for each proxy.
    """
    weights = {"time": 1.0, **dict.fromkeys(proxies, 0.5), **(weights or {})}
    by_name = {"time": ranks(times, smallest=True)} | {name: ranks(scores) for name, scores in proxies.items()}
    totals = tuple(
        math.fsum(weights[name] * own[place] for name, own in by_name.items()) for place in range(len(times))
    )
    by_time = sorted(range(len(times)), key=lambda place: (math.isnan(times[place]), times[place]))
    winner = min(by_time, key=lambda place: totals[place])  # the first of equals: the fastest
    tied = tuple(place for place in by_time if place != winner and totals[place] == totals[winner])
    return Vote(winner, by_name, totals, tied)


def worth(
    times: Sequence[float],
    proxies: Mapping[str, Sequence[float]],
    weights: Mapping[str, float] | None = None,
    price: float | None = None,
    *,
    close: float = CLOSE,
) -> Vote:
    """Returns the vote in which each lost rank of quality multiplies the time by `price`; the smallest total wins.

    total = T * price ** (q - 1). T is the time to the end of training, and q the weighted mean rank of the proxies.
    Every candidate wins for some order of the proxies, if candidates that are neighbours in time differ by at most a
    factor `price`. A candidate that is best in all proxies loses only to one that takes less than 1 / price of its time
    per rank behind. Ties go to the better q, then to the shorter time, then to the first.

    Args:
        times: predicted time to the end of training if the candidate is chosen, in any unit, above 0.
        proxies: by name, one score per candidate; higher is better.
        weights: weights of the proxies, by name; by default all are equal.
        price: at least 1. None: `PRICE`, or the largest ratio of neighbours in time if that is more.
        close: relative tolerance of a tie in a proxy.
    """
    by_name = {name: ranks(scores, absolute=0.0, relative=close) for name, scores in proxies.items()}
    weights = {**dict.fromkeys(proxies, 1.0), **(weights or {})}
    whole = math.fsum(weights[name] for name in by_name)
    quality = [
        math.fsum(weights[name] * own[place] for name, own in by_name.items()) / whole for place in range(len(times))
    ]
    ordered = sorted(times)
    if price is None:
        price = max([PRICE, *(b / a for a, b in zip(ordered, ordered[1:], strict=False))])
    totals = tuple(time * price ** (q - 1) for time, q in zip(times, quality, strict=True))
    equals = [place for place, total in enumerate(totals) if total <= min(totals) * (1 + _EQUAL)]
    winner = min(equals, key=lambda place: (quality[place], times[place], place))
    tied = tuple(place for place in equals if place != winner)
    shown = {"time": ranks(times, smallest=True, absolute=0.0, relative=_EQUAL)} | by_name
    return Vote(winner, shown, totals, tied, price)
