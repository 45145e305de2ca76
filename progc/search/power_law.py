"""Chooses a candidate of the one-shot search from losses and times, with a fitted power law of loss and time.

`published` is the choice of AutoProg (Li et al., CVPR 2022). It fits L = a2 * T ** a1 and takes the smallest
L * T ** alpha with alpha = max(-a1, 0): the candidate that lies lowest below the trend. Where slower is not better, the
lowest loss wins.

`chosen` is ours. It fits logarithms, in closed form. A fit through two times would be meaningless; then alpha is the
power by which further training lowers the loss. Differences within the noise of the losses count as ties.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

_SAME = 1e-9
"""Two times are equal if their relative difference is below this."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A power law L = factor * T ** exponent."""

    exponent: float
    factor: float

    @property
    def alpha(self) -> float:
        """The exponent of time in the choice, at least 0."""
        return max(-self.exponent, 0.0)


@dataclasses.dataclass(frozen=True)
class FitChoice:
    """A choice among candidates.

    Attributes:
        winner: index of the chosen candidate.
        alpha: the exponent of time.
        totals: loss * time ** alpha of every candidate; the smallest is best.
        noise: standard error of each total's difference from the smallest; 0 if it is not known.
        reason: why, in words, without the name of the candidate.
    """

    winner: int
    alpha: float
    totals: tuple[float, ...]
    noise: tuple[float, ...]
    reason: str


def least_squares(losses: Sequence[float], times: Sequence[float]) -> Fit:
    """Fits L = a2 * T ** a1 by least squares, with Levenberg-Marquardt from a1 = a2 = 1 as AutoProg does.

    Args:
        losses: one per candidate.
        times: one per candidate, above 0.
    """
    exponent, factor, damping = 1.0, 1.0, 1e-3
    cost = _cost(losses, times, exponent, factor)
    for _ in range(10_000):
        rows = [(factor * math.log(t) * t**exponent, t**exponent) for t in times]
        gaps = [factor * t**exponent - loss for loss, t in zip(losses, times, strict=True)]
        aa, bb = sum(a * a for a, _ in rows), sum(b * b for _, b in rows)
        ab = sum(a * b for a, b in rows)
        ga, gb = (sum(row[k] * gap for row, gap in zip(rows, gaps, strict=True)) for k in (0, 1))
        better = False
        while damping < 1e16 and not better:
            da, db = aa * (1 + damping), bb * (1 + damping)
            whole = da * db - ab * ab
            if whole > 0:
                a, b = exponent - (db * ga - ab * gb) / whole, factor - (da * gb - ab * ga) / whole
                new = _cost(losses, times, a, b)
                better = new < cost
            damping = damping / 10 if better else damping * 10
        if not better:
            break
        exponent, factor, cost = a, b, new
        damping = max(damping, 1e-15)
    return Fit(exponent, factor)


def _cost(losses: Sequence[float], times: Sequence[float], exponent: float, factor: float) -> float:
    try:
        return math.fsum((factor * t**exponent - loss) ** 2 for loss, t in zip(losses, times, strict=True))
    except OverflowError:
        return math.inf


def log_fit(losses: Sequence[float], times: Sequence[float]) -> Fit | None:
    """Fits log L = log a2 + a1 * log T by least squares, in closed form; None for fewer than three different times.

    A line through two points is exact: all candidates would be equal.

    Args:
        losses: one per candidate, above 0.
        times: one per candidate, above 0.
    """
    if _different(times) < 3:
        return None
    return _line(losses, times)


def exchange_rate(losses: Sequence[float], steps: Sequence[float]) -> float | None:
    """Returns the power of the training time by which the loss falls without a larger network.

    Args:
        losses: losses at several points of training, above 0.
        steps: training steps up to each point; points at step 0 are ignored.

    Returns:
        -d log L / d log steps, at least 0; None for fewer than two different points.
    """
    pairs = [(loss, step) for loss, step in zip(losses, steps, strict=True) if step > 0]
    if _different([step for _, step in pairs]) < 2:
        return None
    return _line([loss for loss, _ in pairs], [step for _, step in pairs]).alpha


def _line(losses: Sequence[float], times: Sequence[float]) -> Fit:
    x, y = [math.log(t) for t in times], [math.log(loss) for loss in losses]
    mx, my = statistics.fmean(x), statistics.fmean(y)
    slope = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.fsum((a - mx) ** 2 for a in x)
    return Fit(slope, math.exp(my - slope * mx))


def _different(numbers: Sequence[float]) -> int:
    ordered = sorted(numbers)
    return len(ordered[:1]) + sum(b - a > _SAME * abs(b) for a, b in zip(ordered, ordered[1:], strict=False))


def published(losses: Sequence[float], times: Sequence[float]) -> FitChoice:
    """Returns AutoProg's choice; the first of equal ones.

    Args:
        losses: one per candidate.
        times: one per candidate, above 0.
    """
    alpha = least_squares(losses, times).alpha if len(losses) > 1 else 0.0
    totals = [loss * t**alpha for loss, t in zip(losses, times, strict=True)]
    winner = totals.index(min(totals))
    why = f"smallest loss x time^{alpha:.3g}" if alpha > 0 else "lowest loss, because slower is not better"
    return FitChoice(winner, alpha, tuple(totals), (0.0,) * len(losses), why)


def chosen(losses: Sequence[Sequence[float]], times: Sequence[float], exchange: float | None = None) -> FitChoice:
    """Returns our choice.

    Args:
        losses: for each candidate, the losses on the same batches in the same order.
        times: one per candidate, above 0.
        exchange: see `exchange_rate`; used if fewer than three times are different. None: it is not known, and the
            lowest loss wins.
    """
    means = [statistics.fmean(own) for own in losses]
    usable = all(mean > 0 for mean in means)  # no power law fits negative losses, such as log-likelihoods
    fit = log_fit(means, times) if usable else None
    alpha = fit.alpha if fit is not None else (exchange or 0.0) if usable else 0.0
    scores = [[loss * t**alpha for loss in own] for own, t in zip(losses, times, strict=True)]
    totals = [statistics.fmean(own) for own in scores]
    best = totals.index(min(totals))
    noise = [_error(own, scores[best]) for own in scores]
    close = _SAME * abs(totals[best])
    near = [place for place, total in enumerate(totals) if total - totals[best] <= noise[place] + close]
    winner = min(near, key=lambda place: (times[place], totals[place], place))
    source = "" if fit is not None else " (exponent from the course of training)"
    why = f"smallest loss x time^{alpha:.3g}{source}" if alpha > 0 else "lowest loss"
    if len(near) > 1:
        what = why.partition(" ")[2]
        why = f"fastest of {len(near)} candidates that differ in {what} by no more than noise"
    return FitChoice(winner, alpha, tuple(totals), tuple(noise), why)


def _error(own: Sequence[float], best: Sequence[float]) -> float:
    """Standard error of the mean difference on the same batches."""
    gaps = [a - b for a, b in zip(own, best, strict=True)]
    return statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
