"""Checkpoints that survive kills and detect damage (docs/checkpoints.md).

    run = "runs/one"
    state = State(model, optimizer=optimizer, ema=ema)
    save(run, state, step=100, data=DataPosition(seed=0, epoch=2, index=640))
    found = latest(run)                     # the newest that verifies
    if found is not None:
        load(found).restore(state)

Importing this package does not import torch. May import `schedule` and everything below it, but not `search`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from progc.checkpoints.keeping import Pruned, best, mark_best, prune
    from progc.checkpoints.loading import Checkpoint, load
    from progc.checkpoints.manifest import Manifest
    from progc.checkpoints.saver import Saver, save
    from progc.checkpoints.searching import is_checkpoint, latest, verify
    from progc.checkpoints.state import State

_HOMES = {
    "Checkpoint": "loading",
    "Manifest": "manifest",
    "Pruned": "keeping",
    "Saver": "saver",
    "State": "state",
    "best": "keeping",
    "is_checkpoint": "searching",
    "latest": "searching",
    "load": "loading",
    "mark_best": "keeping",
    "prune": "keeping",
    "save": "saver",
    "verify": "searching",
}

__all__ = [
    "Checkpoint",
    "Manifest",
    "Pruned",
    "Saver",
    "State",
    "best",
    "is_checkpoint",
    "latest",
    "load",
    "mark_best",
    "prune",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"progc.checkpoints.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'progc.checkpoints' has no attribute {name!r}")
