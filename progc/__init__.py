"""progc: a compiler for progressive training. Importing it does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from progc.ir import facade
from progc.version import __version__

if TYPE_CHECKING:
    from progc.analysis.axes import custom as rules
    from progc.analysis.axes.registry import rule
    from progc.capturing.capture import capture
    from progc.data.task import Task
    from progc.diffing import ProgramDiff, diff
    from progc.growth.grow import grow
    from progc.ir.program import Program
    from progc.lift.averages import Averages as EMA
    from progc.pipeline.manager import apply
    from progc.schedule.running import stages
    from progc.search.plan import plan
    from progc.train.settings import Settings
    from progc.train.trainer import Trainer

_LAZY = {
    "EMA": "progc.lift.averages:Averages",
    "capture": "progc.capturing.capture",
    "grow": "progc.growth.grow",
    "apply": "progc.pipeline.manager",
    "plan": "progc.search.plan",
    "diff": "progc.diffing",
    "ProgramDiff": "progc.diffing",
    "Program": "progc.ir.program",
    "rule": "progc.analysis.axes.registry",
    "stages": "progc.schedule.running",
    "Settings": "progc.train.settings",
    "Task": "progc.data.task",
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
        return importlib.import_module("progc.analysis.axes.custom")
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        value = getattr(importlib.import_module(module), attribute or name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'progc' has no attribute {name!r}")


def _axes(program: Any) -> Any:
    from progc.analysis.axes import axes_of

    return axes_of(program)


def _chains(program: Any) -> Any:
    from progc.analysis.chains import chains_of

    return chains_of(program)


def _module(program: Any) -> Any:
    from progc.ir.module import ProgramModule

    return ProgramModule(program)


# `Program` stands below the analyses, and offers them all the same: set here, above everything.
facade.AXES, facade.CHAINS, facade.MODULE = _axes, _chains, _module
