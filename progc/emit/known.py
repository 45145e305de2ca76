"""Records which regions are in the compiler's cache: a note for each, under a hash of everything it depends on.

The keys of the cache itself can only be computed by tracing a region again. A note may be out of date if the cache was
pruned; the region is then compiled in place.
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
    """Returns the path of the note of each region of a recipe, whether it exists or not."""
    common = {name: recipe[name] for name in ("config", "backward", "options", "autocast")}
    found = []
    for item in recipe["regions"]:
        text = json.dumps([torch.__version__, common, item], sort_keys=True, default=str)
        found.append(cache / FOLDER / hashlib.sha256(text.encode()).hexdigest())
    return found


def write(places: Iterable[Path]) -> None:
    """Records that these regions are in the cache."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
