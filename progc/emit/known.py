"""Which regions the compiler's cache holds already: a note beside it for each, under a hash of all that it depends on.

The cache's own keys cannot be told without tracing a region again. A note may be wrong where the cache was pruned: the
region is then compiled in place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

FOLDER = "progc"


def notes(cache: Path, recipe: Mapping[str, Any]) -> list[Path]:
    """Where the note of each region of a recipe is, or would be."""
    common = {name: recipe[name] for name in ("config", "backward", "options", "autocast")}
    found = []
    for item in recipe["regions"]:
        text = json.dumps([torch.__version__, common, item], sort_keys=True, default=str)
        found.append(cache / FOLDER / hashlib.sha256(text.encode()).hexdigest())
    return found


def write(places: Iterable[Path]) -> None:
    """Says that these regions are in the cache."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
