"""progc: a compiler for progressive training. Importing it does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from progc.capturing import capture
    from progc.growing import grow
    from progc.manager import apply
    from progc.program import Program

_LAZY = {
    "capture": "progc.capturing",
    "grow": "progc.growing",
    "apply": "progc.manager",
    "Program": "progc.program",
}

__all__ = ["Program", "__version__", "apply", "capture", "grow"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'progc' has no attribute {name!r}")
