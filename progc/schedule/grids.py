"""The published grids of levels, and depths shared out over several chains (AutoProg, Li et al., CVPR 2022).

A grid is `linspace(scale, 1, levels) * largest`, rounded to a divisor: 32 for the resolution in pixels, 2 for heads, 1
for depth. At scale 0.5, 224 pixels and 18 blocks have the levels 128, 160, 192, 224 and 9, 12, 15, 18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

RESOLUTION, HEADS, DEPTH = 32, 2, 1
"""Published divisors."""


def rounded(value: Fraction | float, divisor: int) -> int:
    """The nearest multiple of `divisor`, halves upwards, at least one; the next one where that is below 90 %."""
    exact = Fraction(value)
    nearest = max(divisor, math.floor((exact + Fraction(divisor, 2)) / divisor) * divisor)
    return nearest + divisor if nearest < Fraction(9, 10) * exact else nearest


def factors(first: Fraction | float, last: Fraction | float, levels: int) -> list[Fraction]:
    """`linspace(first, last, levels)`, exact: a float stands for the decimal that it prints as."""
    low, high = (value if isinstance(value, Fraction) else Fraction(str(value)) for value in (first, last))
    if levels == 1:
        return [high]
    return [low + (high - low) * k / (levels - 1) for k in range(levels)]


def grid(largest: int, scale: Fraction | float, levels: int, divisor: int = 1) -> list[int]:
    """The published grid: `levels` sizes from `scale * largest` to `largest`; neighbours may be equal."""
    return [rounded(factor * largest, divisor) for factor in factors(scale, 1, levels)]


def split(total: int, full: Sequence[int], steps: Sequence[int] | None = None) -> list[int]:
    """A total depth shared out over chains in proportion to their full depths.

    Every chain but the longest gets its proportion rounded to a whole number of its steps as above, the longest (the
    last of several) what is left. Chains of 4 and 14 blocks with steps 2 and 1 get the published depths:
    9 = 2 + 7, 12 = 4 + 8, 15 = 4 + 11, 18 = 4 + 14. With steps of 1 and 1 they are 2 + 7, 3 + 9, 3 + 12, 4 + 14.

    Args:
        total: at most the sum of `full`.
        full: depth of every chain in the full network.
        steps: what depths are multiples of, per chain; None: 1.
    """
    steps = steps or [1] * len(full)
    rest = max(range(len(full)), key=lambda place: (full[place], place))
    share = Fraction(total, sum(full))
    depths = [min(rounded(share * depth, step), depth) for depth, step in zip(full, steps, strict=True)]
    depths[rest] = total - (sum(depths) - depths[rest])
    return depths
