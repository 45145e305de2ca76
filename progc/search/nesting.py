"""Which blocks of a supernet a shallower sub-network keeps, so that depths are nested in one another.

The supernet has `full` blocks and was grown from `base` blocks by the map of growth
(progc/transforms/depth/places.py), or is looked at as if it had been. Base blocks are the first of the copies of each
source, and every sub-network keeps them.

    base 4, full 9      0 0 1 1 2 2 3 3 3
    grown, 6 blocks     0   1   2 2 3 3         what growing the base to 6 blocks would have made
    deepest, 6 blocks   0   1   2   3 3 3       base and the last of the new blocks (AutoProg, Li et al., CVPR 2022)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from progc.analysis.chains import chains_of
from progc.errors import InputError
from progc.ir.program import Program
from progc.search.candidates import reference_nested
from progc.transforms.depth.places import interpolated
from progc.transforms.shrinking.depths import Kept

Nesting = Literal["grown", "deepest"]


def nested(base: int, full: int, units: int, rule: Nesting = "grown") -> list[int]:
    """Positions among `full` units of those that a sub-network of `units` keeps; base <= units <= full."""
    assert 0 < base <= units <= full
    if rule == "deepest":
        return reference_nested(base, units, full)
    left = Counter(interpolated(base, units))
    found = []
    for place, source in enumerate(interpolated(base, full)):
        if left[source]:
            left[source] -= 1
            found.append(place)
    return found


def kept_blocks(
    program: Program, depths: Mapping[str, int], base: Mapping[str, int], rule: Nesting = "grown"
) -> list[Kept]:
    """What stays of each chain of a supernet that gets shorter.

    Args:
        program: the supernet.
        depths: depth per chain, as users count it (`Chain.siblings`).
        base: depths that are nested in all others.

    Raises:
        InputError: a chain that the supernet does not have, or a depth that it cannot have.
    """
    found = []
    for name, depth in depths.items():
        chain = next((chain for chain in chains_of(program) if chain.name == name), None)
        if chain is None:
            known = ", ".join(chain.name for chain in chains_of(program)) or "none"
            raise InputError(f"depth {name}:{depth}: there is no chain {name}; chains are {known}")
        others, period = chain.siblings - len(chain.blocks), chain.period
        blocks, first = depth - others, base.get(name, depth) - others
        if not 0 < first <= blocks <= len(chain.blocks) or blocks % period or first % period:
            raise InputError(
                f"depth {name}:{depth}: expected {period + others} to {chain.siblings} blocks in steps of {period}, "
                f"and no fewer than {base.get(name, depth)}; choose other depths"
            )
        if blocks == len(chain.blocks):
            continue
        if chain.kind == "dense":  # they grow at their end
            found.append(Kept(chain, tuple(range(blocks))))
            continue
        units = nested(first // period, len(chain.blocks) // period, blocks // period, rule)
        found.append(Kept(chain, tuple(unit * period + i for unit in units for i in range(period))))
    return found
