"""Names in the folder of a run, and whether a folder is that of a run. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from progc.checkpoints.searching import is_checkpoint, steps
from progc.schedule.schedule import PLAN

CONFIG = "config.json"
"""The configuration."""
WEIGHTS = "model.safetensors"
"""The weights of a finished run."""
AVERAGE = "model-ema-"
"""Begins the names of files with averaged weights of a finished run; the decay and `.safetensors` follow."""


def is_run(path: str | Path) -> bool:
    """Returns whether a folder is that of a run or a checkpoint, by the names in it; it may be damaged."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    own = (folder / CONFIG).is_file() and (folder / PLAN).is_file()
    return own or is_checkpoint(folder) or next(steps(folder), None) is not None
