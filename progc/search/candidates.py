"""Lists the candidates of a search at each stage, and the layers that AutoProg's one-shot search cuts them out of.

In mode `reference` candidates are those of the papers. The one-shot search (AutoProg, Li et al., CVPR 2022) starts with
the first, middle and last level of resolution and depth. Later the resolution stays or rises by one level, and the
depth rises by at least one level. The zero-shot search (AutoProg-Zero, Li et al. 2024) starts with the first level and
the one before the middle in resolution and trainable share. Later each stays or rises by one level. The last stage is
never searched.

In mode `default` no candidate occurs twice, every dimension may stay, and width is a dimension like the others. All
shapes of the trainable set are candidates, with the present share of blocks or the next larger one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from progc.errors import InputError
from progc.schedule.space import Index, Space
from progc.transforms.depth.naming import interpolated

ONE_SHOT_DEPTHS = 3
"""Largest number of depths among the candidates of a later stage of the one-shot search."""


def one_shot_candidates(
    space: Space, current: Index | None, stage: int, stages: int, mode: str = "default"
) -> list[Index]:
    """Returns the candidates of the one-shot search, resolution outermost; everything trains in all of them.

    Args:
        space: the growth space.
        current: position of the previous stage; None at stage 0, where it is not used.
        stage: index of the stage.
        stages: number of stages.
        mode: `reference` or `default`.

    Returns:
        At least one position. A single one needs no search: it is the full network of the last stage, or a network
        that cannot grow further.

    Raises:
        InputError: in `reference`, a depth of more than twice the smallest, which AutoProg's procedure cannot grow to.
    """
    sizes, reference = space.shape, mode == "reference"
    if stage >= stages - 1:
        return [space.last]
    if stage == 0 or current is None:
        per_dim = [_unique((0, size // 2, size - 1)) for size in sizes[:3]]
    else:
        resolutions = _up(current.resolution, sizes.resolution, 1)
        depths = _up(current.depth, sizes.depth, ONE_SHOT_DEPTHS if reference else ONE_SHOT_DEPTHS - 1)
        if reference and len(depths) > 1:
            depths = depths[1:]
        per_dim = [resolutions, depths, _up(current.width, sizes.width, 1)]
    if reference:
        per_dim[2] = [space.last.width]
        _check_double(space, per_dim[1])
    return [
        Index(resolution, depth, width, space.last.unfreeze) for resolution, depth, width in itertools.product(*per_dim)
    ]


def zero_shot_candidates(
    space: Space, current: Index | None, stage: int, stages: int, mode: str = "default"
) -> list[Index]:
    """Returns the candidates of the zero-shot search, resolution outermost.

    In `reference`, at the first stage, a dimension of fewer than four levels has the first one twice, as in
    AutoProg-Zero's code: its candidates occur twice and are measured twice. In later stages each candidate occurs once.
    Only the first shape of the trainable set is used.

    Args:
        space: the growth space.
        current: position of the previous stage; None at stage 0, where it is not used.
        stage: index of the stage.
        stages: number of stages.
        mode: `reference` or `default`.

    Returns:
        At least one position. A single one needs no search.
    """
    if stage >= stages - 1:
        return [space.last]
    first = stage == 0 or current is None
    before = Index() if current is None else current
    if mode == "reference":
        sizes = space.shape._replace(unfreeze=_first_shape(space))
        levels = [
            [0, max(size // 2 - 1, 0)] if first else _up(at, size, 1) for at, size in zip(before, sizes, strict=True)
        ]
        for place in (1, 2):  # AutoProg-Zero does not search depth and width: nothing is measured twice for them
            levels[place] = _unique(levels[place])
        return [Index(*place) for place in itertools.product(*levels)]
    levels = [
        _unique((0, max(size // 2 - 1, min(1, size - 1)))) if first else _up(at, size, 1)
        for at, size in zip(before[:3], space.shape[:3], strict=True)
    ]
    return [Index(*place) for place in itertools.product(*levels, _trainable(space, before.unfreeze, first))]


def supernet(candidates: Iterable[Index]) -> Index:
    """Returns the smallest position that contains all candidates: the network whose weights they share."""
    return Index(*(max(levels) for levels in zip(*candidates, strict=True)))


# -- the published nesting of layers -------------------------------------------------------------------------------


def reference_nested(base: int, depth: int, full: int) -> list[int]:
    """Returns the positions of the layers that AutoProg evaluates as a sub-network of a supernet.

    These are the layers of the smallest candidate, at the positions to which growth spreads them, and the last
    `depth - base` of the layers that growth adds.

    Args:
        base: number of layers of the smallest candidate.
        depth: number of layers of the sub-network.
        full: number of layers of the supernet.

    Raises:
        InputError: not 0 < base <= depth <= full.
    """
    if not 0 < base <= depth <= full:
        raise InputError(f"nested layers: expected 0 < base <= depth <= full, got {base}, {depth}, {full}")
    sources = interpolated(base, full)
    new = [place for place in range(full) if place and sources[place] == sources[place - 1]]
    left_out = set(new[: full - depth])
    return [place for place in range(full) if place not in left_out]


def reference_recycled(before: int, depth: int, full: int) -> list[int]:
    """Returns the positions of the layers that AutoProg keeps of its winner, counted from the previous stage.

    In later stages this is another sub-network than the one that was evaluated, unless it is the supernet itself.

    Args:
        before: number of layers of the network of the previous stage.
        depth: number of layers of the winner.
        full: number of layers of the supernet.
    """
    return reference_nested(before, depth, full)


# -- levels ---------------------------------------------------------------------------------------------------------


def _up(current: int, size: int, steps: int) -> list[int]:
    return list(range(current, min(current + steps, size - 1) + 1))


def _unique(levels: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(levels))


def _first_shape(space: Space) -> int:
    """Levels of the first shape, which come first."""
    if not space.unfreeze:
        return 1
    return sum(level.shape == space.unfreeze[0].shape for level in space.unfreeze)


def _trainable(space: Space, current: int, first: bool) -> list[int]:
    """Levels of every shape with the present share of trainable blocks or the next larger one; full ones are merged.

    At the first stage: the smallest share of each shape, and the one before its middle.
    """
    levels, last = space.unfreeze, space.last.unfreeze
    if not levels:
        return [0]
    shapes = dict.fromkeys(level.shape for level in levels)
    found: list[int] = []
    for shape in shapes:
        own = [place for place, level in enumerate(levels) if level.shape == shape]
        if first:
            chosen: Sequence[int] = [own[0], own[max(len(own) // 2 - 1, min(1, len(own) - 1))]]
        else:
            share = levels[current].share
            here = [place for place in own if levels[place].share == share]
            chosen = here + [place for place in own if levels[place].share > share][:1]
        found += [last if levels[place].full else place for place in chosen]
    return _unique(found) or [last]


def _check_double(space: Space, levels: Sequence[int]) -> None:
    if not space.depths or not levels:
        return
    small, large = (sum(space.depths[level].values()) for level in (min(levels), max(levels)))
    if large > 2 * small:
        raise InputError(
            f"one-shot reference: expected candidates at most twice as deep as the smallest, got depths {small} and "
            f"{large}; give depths that are closer together, or use the mode default"
        )
