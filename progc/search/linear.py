"""The manual schedule: every dimension goes through its levels in step, position by position (AutoProg, AutoProg-Zero).

With as many levels as stages this is the published one ("Prog"). Otherwise a stage takes the level that is nearest to
its place in the run, the smaller of two, so that growth stays even. The last stage is the full network.
"""

from __future__ import annotations

from progc.errors import InputError
from progc.schedule.space import Index, Space


def linear(space: Space, stages: int) -> list[Index]:
    """A place in the space for every stage; trainable sets go through the levels of the first shape.

    Raises:
        InputError: fewer than one stage.
    """
    if stages < 1:
        raise InputError(f"linear: stages is a whole number from 1 on, not {stages}")
    sizes = space.shape
    shape = space.unfreeze[0].shape if space.unfreeze else None
    own = sum(level.shape == shape for level in space.unfreeze) if space.unfreeze else 1
    places = [
        Index(
            level(stage, stages, sizes.resolution),
            level(stage, stages, sizes.depth),
            level(stage, stages, sizes.width),
            level(stage, stages, own),
        )
        for stage in range(stages - 1)
    ]
    return [*places, space.last]


def level(stage: int, stages: int, levels: int) -> int:
    """Which of `levels` levels a stage takes: the first at stage 0, the last at the last stage."""
    if stages == 1:
        return levels - 1
    way, whole = stage * (levels - 1), stages - 1
    return -((whole - 2 * way) // (2 * whole))
