"""A stage's program as the module that trains: compiled where compiling is right on this machine."""

from __future__ import annotations

import torch

from progc.emit import emit, regions
from progc.emit.canary import check_compiler
from progc.emit.stage_module import StageModule
from progc.program import Program
from progc.train.settings import Settings


def emitted(program: Program, settings: Settings, device: torch.device) -> StageModule:
    """The stage module of a program; train graphs are compiled, eval graphs are not.

    Raises:
        CheckError: compiled gradients are wrong on this machine.
    """
    if settings.compile == "eager":
        return emit(program, "eager", recompute=settings.recompute)
    # Every stage brings functions of its own; what ran before must not count against the limit of one function.
    torch._dynamo.reset()
    check_compiler(device.type)
    return emit(program, settings.compile, recompute=settings.recompute, modes=("train",))


def expected_compiles(module: StageModule) -> int:
    """How many functions a stage compiles for its train graph, at one size of micro-batch."""
    return len(regions(module, "train"))
