"""How scores become a choice: the published vote of ranks, and one in which quality is paid for in time.

Published (AutoProg-Zero, Li et al. 2024): ranks of the time of a step and of each proxy are added with weights 1 and
1/2 each, and a tie goes to the fastest. Larger networks cost more time, so the fastest of m candidates starts with a
lead of m - 1 ranks over the slowest, which is all that the proxies can give: the slowest never wins, and of two
candidates the smaller always does.

`worth` keeps ranks for quality, whose scales mean nothing, and takes time as it is: the predicted time to the end of
training. A rank of quality is worth a factor of that time (docs/adr/0017-zero-shot.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

TOLERANCE = 1e-6
"""Published: times and scores that differ by no more than this, absolutely, are tied."""

CLOSE = 1e-3
"""Scores that differ by no more than this share of the better one are tied: rounding of 32-bit sums makes that much."""

PRICE = 1.1
"""Least factor of the time to the end of training that one rank of quality is worth."""

_EQUAL = 1e-9
"""Totals that differ by no more than this share are tied."""


@dataclasses.dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
        winner: index of the chosen candidate.
        ranks: by name of the score, one rank per candidate; 1 for the best.
        totals: what the winner is the smallest of.
        tied: other candidates with the winner's total.
        price: see `worth`; None for the published vote.
    """

    winner: int
    ranks: Mapping[str, tuple[int, ...]]
    totals: tuple[float, ...]
    tied: tuple[int, ...]
    price: float | None = None


def ranks(
    values: Sequence[float], *, smallest: bool = False, absolute: float = TOLERANCE, relative: float = 0.0
) -> tuple[int, ...]:
    """Competition ranks (1, 1, 3): the largest value is first, or the smallest.

    A value is tied with the *first* of its group, so that a long row of small steps is no tie. NaN comes last.

    Args:
        values: one per candidate; infinities are allowed.
        smallest: whether smaller is better.
        absolute, relative: how far a value may be from the first of its group, at most; relative to the latter.
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
    """The published vote: weighted sum of competition ranks, the smallest wins, a tie goes to the fastest.

    Args:
        times: seconds of a step, one per candidate.
        proxies: by name, one score per candidate; higher is better.
        weights: by name, `time` among them; by default 1 for the time and 1/2 for each proxy.
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
    """Time multiplied by `price` for every rank of quality that is given away; the smallest wins.

    total = T * price ** (q - 1), where T is the time to the end of training and q the weighted mean of the ranks that
    the proxies give. For every candidate there are proxy orders by which it wins, as long as no two candidates next to
    each other in time are further apart than `price`. One that is best in all proxies loses only to another that takes
    less than 1 / price of its time for every rank that it is behind. Ties go to the better q, then to the shorter time,
    then to the first.

    Args:
        times: predicted time to the end of training if the candidate is chosen, in any unit; above 0.
        proxies: by name, one score per candidate; higher is better.
        weights: of the proxies, by name; by default all equal.
        price: at least 1. None: `PRICE`, or the largest ratio of two candidates next to each other in time if that is
            more.
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
