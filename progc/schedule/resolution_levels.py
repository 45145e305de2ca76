"""Finds the levels of the resolution: image sizes that the network can take, on a grid like AutoProg's by default."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from progc.errors import InputError, TargetError
from progc.schedule.level_texts import NONE, Levels, items, parse
from progc.schedule.point import size_text
from progc.schedule.space import factors
from progc.schedule.space import sizes as sizes_on_grid
from progc.transforms.resolution.images import find_images
from progc.transforms.resolution.resize import resize, working

if TYPE_CHECKING:
    from progc.ir.program import Program

Size = tuple[int, int]
SMALLEST = Fraction(1, 2)
STEPS = 7
"""A grid has at least this many steps in the full size: multiples of 32 in 224 pixels, as published."""
_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


def by_default(program: Program, levels: int, notes: list[str], mode: str = "default") -> list[Size]:
    """Returns evenly spaced sizes on the grid, from half the full size; none and a note if only the full one works.

    `reference` rounds as published (see `progc.schedule.space.sizes`).
    """
    try:
        return _on_grid(program, factors(SMALLEST, Fraction(1), levels), mode)
    except (InputError, TargetError) as reason:
        notes.append(f"resolution does not vary: {reason}")
        return []


def asked(program: Program, text: Levels, mode: str = "default") -> list[Size]:
    """Returns the sizes that a text gives; factors and ranges are rounded to the grid, in `reference` as published.

    Raises:
        InputError: the network takes no image, a size that it cannot take (the message gives the nearest ones), or a
            last level that is not the full size.
    """
    try:
        full = find_images(program)[0].size
    except TargetError as error:
        raise InputError(f"resolutions: {error}; remove resolutions") from error
    texts = items(text)
    if not all(_SIZE.fullmatch(item) for item in texts):
        wishes = parse("resolutions", text, example="128,160x224")
        if not wishes[0].relative:
            wide = [Fraction(value, full[0]) for value in wishes[0].values]
            if full[0] != full[1] or wide[-1] > 1:
                raise InputError(
                    f"resolutions `{wishes[0].text}`: expected sizes up to the full image size, {size_text(full)}; "
                    "list them"
                )
            found = _on_grid(program, wide, mode)
        else:
            found = _on_grid(program, list(wishes[0].values), mode)
    else:
        found = [_parsed(item) for item in texts]
    for size in found:
        if size[0] > full[0] or size[1] > full[1]:
            raise InputError(
                f"resolutions: {size_text(size)} is larger than the image size of the full network, {size_text(full)}; "
                "grow the network to it first, or remove it"
            )
        try:
            resize(program, f"{size[0]}x{size[1]}")
        except TargetError as error:
            raise InputError(f"resolutions: {str(error).removeprefix('grow-resolution: ')}") from error
    if any(b[0] < a[0] or b[1] < a[1] for a, b in zip(found, found[1:], strict=False)):
        raise InputError(
            f"resolutions: expected sizes that ascend in height and width, got {', '.join(map(size_text, found))}; "
            "sort them"
        )
    if found and found[-1] != full:
        raise InputError(
            f"resolutions: expected the full image size, {size_text(full)}, as the last level; write "
            f"{','.join(map(size_text, found))},{size_text(full)}"
        )
    return _distinct(found)


def grid_step(program: Program) -> Size:
    """Returns the step of the grid of default sizes, `(height, width)` in pixels.

    Distances to the full size that divide it are tried, smallest first. The first that works is doubled while it is at
    most a seventh of the image.

    Raises:
        InputError: no smaller size works.
        TargetError: the network takes no image.
    """
    height, width = find_images(program)[0].size
    if height == width:
        step = _step(program, height, lambda side: (side, side))
        return step, step
    return (
        _step(program, height, lambda side: (side, width)),
        _step(program, width, lambda side: (height, side)),
    )


def _step(program: Program, full: int, at: object) -> int:
    assert callable(at)
    steps = [step for step in range(1, full // 2 + 1) if full % step == 0]
    works = working(program, [at(full - step) for step in steps])
    first = next((step for step, good in zip(steps, works, strict=True) if good), None)
    if first is None:
        raise InputError(f"the network takes no image smaller than {full} pixels on a regular grid")
    while first * 2 * STEPS <= full and full % (first * 2) == 0:
        first *= 2
    return first


def _on_grid(program: Program, wanted: list[Fraction], mode: str) -> list[Size]:
    full, steps = find_images(program)[0].size, grid_step(program)
    sides = [
        [side if factor == 1 else min(size, side) for factor, size in zip(wanted, found, strict=True)]
        for side, step in zip(full, steps, strict=True)
        for found in [sizes_on_grid(wanted, side, step, mode)]
    ]
    sizes = list(zip(*sides, strict=True))
    works = working(program, sizes)
    return _distinct([size for size, good in zip(sizes, works, strict=True) if good])


def _parsed(text: str) -> Size:
    match = _SIZE.fullmatch(text)
    assert match is not None
    height, width = int(match[1]), int(match[2] or match[1])
    if not (height and width):
        raise InputError(f"resolutions `{text}`: expected sizes such as 128,160x224, factors (0.5:1:4), or {NONE}")
    return height, width


def _distinct(sizes: list[Size]) -> list[Size]:
    found = list(dict.fromkeys(sizes))
    return found if len(found) > 1 else []
