"""progc: a compiler for progressive training. Importing it does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from progc import rules
    from progc.averages import Averages as EMA
    from progc.axes.registry import rule
    from progc.capturing import capture
    from progc.diffing import ProgramDiff, diff
    from progc.growing import grow
    from progc.manager import apply
    from progc.planning import plan
    from progc.program import Program
    from progc.schedule.running import stages
    from progc.task import Task
    from progc.train.settings import Settings
    from progc.train.trainer import Trainer

_LAZY = {
    "EMA": "progc.averages:Averages",
    "capture": "progc.capturing",
    "grow": "progc.growing",
    "apply": "progc.manager",
    "plan": "progc.planning",
    "diff": "progc.diffing",
    "ProgramDiff": "progc.diffing",
    "Program": "progc.program",
    "rule": "progc.axes.registry",
    "stages": "progc.schedule.running",
    "Settings": "progc.train.settings",
    "Task": "progc.task",
    "Trainer": "progc.train.trainer",
}

__all__ = [
    "EMA",
    "Program",
    "ProgramDiff",
    "Settings",
    "Task",
    "Trainer",
    "__version__",
    "apply",
    "capture",
    "diff",
    "grow",
    "plan",
    "rule",
    "rules",
    "stages",
]


def __getattr__(name: str) -> Any:
    if name == "rules":
        return importlib.import_module("progc.rules")
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        value = getattr(importlib.import_module(module), attribute or name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'progc' has no attribute {name!r}")
