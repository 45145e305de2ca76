"""Index maps of depth growth: which old block stands at which new place (AutoProg, Li et al., CVPR 2022).

interpolate, identity   4 -> 10: 0 0 1 1 2 2 2 3 3 3     copies next to their source, extra ones deepest
stack                   4 -> 10: 0 1 2 3 0 1 2 3 0 1     the whole chain again
random                  4 -> 6:  0 1 2 3 3 3             new blocks at the end
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Arrangement = Literal["identity", "interpolate", "stack", "random"]


@dataclasses.dataclass(frozen=True)
class Place:
    """One place of the grown chain: the index of the old block it is made from, and whether it is a copy."""

    source: int
    copy: bool


def interpolated(old: int, new: int) -> list[int]:
    """Source of each new place: old layers 0 .. old - rest - 1 occur q times, the others q + 1 times, in order."""
    times, rest = divmod(new, old)
    return [i for i in range(old) for _ in range(times + (i >= old - rest))]


def arranged(old: int, new: int, period: int, init: Arrangement) -> list[Place]:
    """The places of a chain that grows from `old` to `new` blocks, both whole numbers of periods, old <= new.

    Blocks of one period stay together and in order, whatever the arrangement.
    """
    assert 0 < old <= new and old % period == new % period == 0
    units, target = old // period, new // period
    if init == "stack":
        sources = [i % units for i in range(target)]
    elif init == "random":
        sources = [min(i, units - 1) for i in range(target)]
    else:
        sources = interpolated(units, target)
    seen: set[int] = set()
    places = []
    for unit in sources:
        places += [Place(unit * period + i, unit in seen) for i in range(period)]
        seen.add(unit)
    return places
