"""Resolution changes: follows the extents of images through the graphs, and rewrites literals and tables.

Imports only floors below the transforms.
"""

from __future__ import annotations

from typing import Any

__all__ = ["at_sizes", "resize"]


def __getattr__(name: str) -> Any:
    # Late: the lift reads dims from here, and resizing needs the lift.
    if name == "resize":
        from progc.transforms.resolution.resize import resize

        return resize
    if name == "at_sizes":
        from progc.transforms.resolution.resize import at_sizes

        return at_sizes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
