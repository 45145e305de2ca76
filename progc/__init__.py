"""progc: a compiler for progressive training.

The names below are the public interface; each is imported when it is first used, so importing progc does not import
torch. Authors of passes need `Pass`, `PassResult`, `option`, `Program`, `Lift`, `TensorLift`, `Scale`, `copy_graph` and
`propagate` (docs/custom-passes.md); authors of rules need `rule` and `rules` (docs/custom-ops.md). `compare` measures
how far two programs differ.
"""

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
    from progc.ir.check import compare
    from progc.ir.graphs import copy_graph, propagate
    from progc.ir.program import Program
    from progc.lift.averages import Averages as EMA
    from progc.lift.entry import Scale, TensorLift
    from progc.lift.lift import Lift
    from progc.pipeline.base import Pass, PassResult, option
    from progc.pipeline.manager import apply
    from progc.search.online import stages
    from progc.search.plan import plan
    from progc.search.strategies import Strategy
    from progc.train.settings import Settings
    from progc.train.trainer import Trainer

_LAZY = {
    "EMA": "progc.lift.averages:Averages",
    "capture": "progc.capturing.capture",
    "grow": "progc.growth.grow",
    "apply": "progc.pipeline.manager",
    "plan": "progc.search.plan",
    "Strategy": "progc.search.strategies",
    "diff": "progc.diffing",
    "ProgramDiff": "progc.diffing",
    "Program": "progc.ir.program",
    "Pass": "progc.pipeline.base",
    "PassResult": "progc.pipeline.base",
    "option": "progc.pipeline.base",
    "Lift": "progc.lift.lift",
    "TensorLift": "progc.lift.entry",
    "Scale": "progc.lift.entry",
    "copy_graph": "progc.ir.graphs",
    "propagate": "progc.ir.graphs",
    "compare": "progc.ir.check",
    "rule": "progc.analysis.axes.registry",
    "stages": "progc.search.online",
    "Settings": "progc.train.settings",
    "Task": "progc.data.task",
    "Trainer": "progc.train.trainer",
}

__all__ = [
    "EMA",
    "Lift",
    "Pass",
    "PassResult",
    "Program",
    "ProgramDiff",
    "Scale",
    "Settings",
    "Strategy",
    "Task",
    "TensorLift",
    "Trainer",
    "__version__",
    "apply",
    "capture",
    "compare",
    "copy_graph",
    "diff",
    "grow",
    "option",
    "plan",
    "propagate",
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


# `Program` is below the analyses and may not import them, so its properties `axes` and `chains` are set here.
facade.AXES, facade.CHAINS, facade.MODULE = _axes, _chains, _module
