"""A growth space: per dimension the levels that stages choose from, smallest first, the full network's last."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from progc.errors import InputError
from progc.schedule.point import Point
from progc.schedule.unfreeze import Unfreeze


class Index(NamedTuple):
    """A place in a space: the level in each dimension; 0 where the space does not vary in it."""

    resolution: int = 0
    depth: int = 0
    width: int = 0
    unfreeze: int = 0


@dataclasses.dataclass(frozen=True)
class Space:
    """The points that a schedule may use.

    Attributes:
        depths: each level a depth for every chain that varies; empty if depth does not vary.
        widths: each level a size for every key of `Point.widths`; empty if width does not vary.
        resolutions: height and width of the image, ascending; empty if the resolution does not vary.
        unfreeze: levels of one shape, ascending, the last one full; with several shapes one shape after the other.
            Empty if everything always trains.

    Raises:
        InputError: levels of one dimension that do not name the same chains or axes, or that do not ascend.
    """

    depths: tuple[Mapping[str, int], ...] = ()
    widths: tuple[Mapping[str, int], ...] = ()
    resolutions: tuple[tuple[int, int], ...] = ()
    unfreeze: tuple[Unfreeze, ...] = ()

    def __post_init__(self) -> None:
        for what, levels in (("depths", self.depths), ("widths", self.widths)):
            for small, large in zip(levels, levels[1:], strict=False):
                if small.keys() != large.keys():
                    raise InputError(f"space: levels of {what} name {sorted(small)} and {sorted(large)}; name the same")
                if any(large[name] < size for name, size in small.items()):
                    raise InputError(f"space: {what} do not ascend: {dict(small)}, then {dict(large)}")
        for a, b in zip(self.resolutions, self.resolutions[1:], strict=False):
            if b[0] < a[0] or b[1] < a[1]:
                raise InputError(f"space: resolutions do not ascend: {list(a)}, then {list(b)}")

    @property
    def shape(self) -> Index:
        """Number of levels per dimension, at least 1."""
        return Index(*(max(len(levels), 1) for levels in self._levels))

    @property
    def last(self) -> Index:
        """The full network, everything trainable."""
        full = [place for place, level in enumerate(self.unfreeze) if level.full]
        sizes = self.shape
        return Index(sizes.resolution - 1, sizes.depth - 1, sizes.width - 1, full[-1] if full else 0)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to choose: one point only."""
        return all(size == 1 for size in self.shape)

    def point(self, index: Index) -> Point:
        """The point at a place.

        Raises:
            IndexError: no such level.
        """
        return Point(
            self.depths[index.depth] if self.depths else {},
            self.widths[index.width] if self.widths else {},
            self.resolutions[index.resolution] if self.resolutions else None,
            self.unfreeze[index.unfreeze] if self.unfreeze else None,
        )

    def places(self) -> Iterator[Index]:
        """All places, the last dimension fastest."""
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
        """What `to_json` gave.

        Raises:
            InputError: a value that is none.
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
