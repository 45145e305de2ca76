"""Spaces with the published levels."""

from __future__ import annotations

from progc.schedule import Space, Unfreeze

RESOLUTIONS = tuple((side, side) for side in (128, 160, 192, 224))
DEPTHS = tuple({"blocks": depth} for depth in (9, 12, 15, 18))
LEVELS = tuple(Unfreeze("interleave", level, 4) for level in (1, 2, 3, 4))
SHAPES = tuple(Unfreeze(shape, level, 4) for shape in ("interleave", "prefix", "suffix") for level in (1, 2, 3, 4))

VOLO = Space(depths=DEPTHS, resolutions=RESOLUTIONS)
DIT = Space(resolutions=tuple((side, side) for side in (64, 128, 192, 256)), unfreeze=LEVELS)
"""The spaces of the published experiments."""
