"""A growth space: for each dimension the levels that stages choose from, ascending to the full network.

Below it are the grids of levels of AutoProg (Li et al., CVPR 2022), and how a depth is divided over several chains. A
grid is `linspace(scale, 1, levels) * largest`, rounded to a divisor: 32 for the resolution in pixels, 2 for heads, 1
for depth. At scale 0.5, 224 pixels and 18 blocks have the levels 128, 160, 192, 224 and 9, 12, 15, 18.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from progc.errors import InputError
from progc.schedule.point import Point, Unfreeze


class Index(NamedTuple):
    """A position in a space: the level in each dimension, 0 in a dimension that does not vary."""

    resolution: int = 0
    depth: int = 0
    width: int = 0
    unfreeze: int = 0


@dataclasses.dataclass(frozen=True)
class Space:
    """The points that a schedule may use.

    Attributes:
        depths: for each level a depth of every chain that varies; empty if depth does not vary.
        widths: for each level a size for every key of `Point.widths`; empty if width does not vary.
        resolutions: height and width of the image in pixels, ascending; empty if the resolution does not vary.
        unfreeze: levels of a shape, ascending, the last one full; with several shapes, one shape after the other.
            Empty if everything always trains.

    Raises:
        InputError: the levels of a dimension name different chains or axes, or do not ascend.
    """

    depths: tuple[Mapping[str, int], ...] = ()
    widths: tuple[Mapping[str, int], ...] = ()
    resolutions: tuple[tuple[int, int], ...] = ()
    unfreeze: tuple[Unfreeze, ...] = ()

    def __post_init__(self) -> None:
        for what, levels in (("depths", self.depths), ("widths", self.widths)):
            for small, large in zip(levels, levels[1:], strict=False):
                if small.keys() != large.keys():
                    raise InputError(
                        f"space: {what}: expected the same names in all levels, got {sorted(small)} and {sorted(large)}"
                    )
                if any(large[name] < size for name, size in small.items()):
                    raise InputError(
                        f"space: {what}: expected ascending levels, got {dict(small)} followed by {dict(large)}"
                    )
        for a, b in zip(self.resolutions, self.resolutions[1:], strict=False):
            if b[0] < a[0] or b[1] < a[1]:
                raise InputError(f"space: resolutions: expected ascending sizes, got {list(a)} followed by {list(b)}")

    @property
    def shape(self) -> Index:
        """The number of levels of each dimension, at least 1."""
        return Index(*(max(len(levels), 1) for levels in self._levels))

    @property
    def last(self) -> Index:
        """The position of the full network with everything trainable."""
        full = [place for place, level in enumerate(self.unfreeze) if level.full]
        sizes = self.shape
        return Index(sizes.resolution - 1, sizes.depth - 1, sizes.width - 1, full[-1] if full else 0)

    @property
    def empty(self) -> bool:
        """Whether the space has a single point."""
        return all(size == 1 for size in self.shape)

    def point(self, index: Index) -> Point:
        """Returns the point at a position.

        Raises:
            IndexError: there is no such level.
        """
        return Point(
            self.depths[index.depth] if self.depths else {},
            self.widths[index.width] if self.widths else {},
            self.resolutions[index.resolution] if self.resolutions else None,
            self.unfreeze[index.unfreeze] if self.unfreeze else None,
        )

    def places(self) -> Iterator[Index]:
        """Iterates over all positions, the last dimension fastest."""
        sizes = self.shape
        for resolution in range(sizes.resolution):
            for depth in range(sizes.depth):
                for width in range(sizes.width):
                    for unfreeze in range(sizes.unfreeze):
                        yield Index(resolution, depth, width, unfreeze)

    @property
    def _levels(self) -> tuple[tuple[Any, ...], ...]:
        return self.resolutions, self.depths, self.widths, self.unfreeze

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "depths": [dict(level) for level in self.depths],
            "widths": [dict(level) for level in self.widths],
            "resolutions": [list(size) for size in self.resolutions],
            "unfreeze": [str(level) for level in self.unfreeze],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Space:
        """Reads a space that `to_json` wrote.

        Raises:
            InputError: an invalid value.
        """
        points = [Point.from_json({"depths": level}) for level in data.get("depths", ())]
        wide = [Point.from_json({"widths": level}) for level in data.get("widths", ())]
        sized = [Point.from_json({"resolution": size}) for size in data.get("resolutions", ())]
        levels = tuple(Unfreeze.parse(str(text)) for text in data.get("unfreeze", ()))
        return cls(
            tuple(point.depths for point in points),
            tuple(point.widths for point in wide),
            tuple(point.resolution for point in sized if point.resolution is not None),
            levels,
        )


RESOLUTION, HEADS, DEPTH = 32, 2, 1
"""Divisors of AutoProg's grids."""


def rounded(value: Fraction | float, divisor: int) -> int:
    """Rounds to the nearest multiple of `divisor`, at least one; up where the result would be below 90 % of `value`."""
    exact = Fraction(value)
    nearest = max(divisor, math.floor((exact + Fraction(divisor, 2)) / divisor) * divisor)
    return nearest + divisor if nearest < Fraction(9, 10) * exact else nearest


def factors(first: Fraction | float, last: Fraction | float, levels: int) -> list[Fraction]:
    """Returns `linspace(first, last, levels)` exactly; a float means the decimal that it prints as."""
    low, high = (value if isinstance(value, Fraction) else Fraction(str(value)) for value in (first, last))
    if levels == 1:
        return [high]
    return [low + (high - low) * k / (levels - 1) for k in range(levels)]


def grid(largest: int, scale: Fraction | float, levels: int, divisor: int = 1, mode: str = "default") -> list[int]:
    """Returns AutoProg's grid of `levels` sizes from `scale * largest` to `largest`; neighbours may be equal."""
    return sizes(factors(scale, 1, levels), largest, divisor, mode)


def sizes(parts: Sequence[Fraction], largest: int, divisor: int, mode: str = "default") -> list[int]:
    """Returns the multiples of `divisor` that are nearest to parts of the largest size (see `rounded`).

    `default` computes exactly. `reference` computes in double precision and in the order of AutoProg's code, where a
    rounding error can decide a tie: 240 of 288 pixels is 5/6, or 239.99999999999997, and becomes 224 and not 256.

    Args:
        parts: ascending factors; evenly spaced ones count as a range from the first to the last.
        largest: the size that the factors apply to.
        divisor: what the sizes are multiples of.
        mode: `default` or `reference`.
    """
    if mode != "reference":
        return [rounded(part * largest, divisor) for part in parts]
    numbers = [float(part) for part in parts]
    if len(parts) > 2 and list(parts) == factors(parts[0], parts[-1], len(parts)):
        step = (numbers[-1] - numbers[0]) / (len(numbers) - 1)
        numbers[1:-1] = [numbers[0] + k * step for k in range(1, len(numbers) - 1)]
    return [_rounded_in_floats(number * largest, divisor) for number in numbers]


def _rounded_in_floats(value: float, divisor: int) -> int:
    """`rounded`, with the rounding errors of the published code."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def split(total: int, full: Sequence[int], steps: Sequence[int] | None = None) -> list[int]:
    """Divides a total depth over chains in proportion to their full depths.

    Every chain but the longest gets its proportion, rounded to a multiple of its step (see `rounded`). The longest one
    (the last if there are several) gets the rest. Chains of 4 and 14 blocks with steps 2 and 1 get the depths published
    for AutoProg: 9 = 2 + 7, 12 = 4 + 8, 15 = 4 + 11, 18 = 4 + 14. With steps 1 and 1 they get 2 + 7, 3 + 9, 3 + 12,
    4 + 14.

    Args:
        total: total number of blocks, at most the sum of `full`.
        full: depth of every chain in the full network.
        steps: for every chain, what its depths are multiples of; None: 1.
    """
    steps = steps or [1] * len(full)
    rest = max(range(len(full)), key=lambda place: (full[place], place))
    share = Fraction(total, sum(full))
    depths = [min(rounded(share * depth, step), depth) for depth, step in zip(full, steps, strict=True)]
    depths[rest] = total - (sum(depths) - depths[rest])
    return depths
