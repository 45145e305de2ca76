"""Turns the program of a stage into the module that trains, compiled where compiling works on this machine.

Compiling may fail because of a damaged cache or a fault of the compiler. It is then tried once more with an empty cache
that belongs to this process; the shared cache is left alone, since other processes may use it. If that fails too,
functions run without being compiled.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from progc.emit import emit, regions
from progc.emit.canary import check_compiler
from progc.emit.stage_module import StageModule
from progc.ir.program import Program
from progc.train.settings import Settings

Tell = Callable[[str], None]


def emitted(program: Program, settings: Settings, device: torch.device, tell: Tell | None = None) -> StageModule:
    """Returns the stage module of a program; train graphs are compiled, eval graphs are not.

    Args:
        program: program of the stage, with its tensors.
        settings: settings of the run.
        device: device on which the stage trains.
        tell: called with a message for every failed compilation; None logs it.

    Raises:
        CheckError: compiled gradients are wrong on this machine.
    """
    if settings.compile == "eager":
        return emit(program, "eager", recompute=settings.recompute)
    # Dynamo limits how often one function is compiled; functions of earlier stages must not count.
    torch._dynamo.reset()
    # A backward that cannot be compiled then fails in the forward, where falling back is still possible.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    compiling = Compiling(tell)
    compiling.attempt(lambda: check_compiler(device.type), lambda: None)
    return emit(program, settings.compile, recompute=settings.recompute, modes=("train",), compiler=compiling)


def expected_compiles(module: nn.Module) -> int:
    """Returns how many functions a stage compiles for its train graph, at one size of micro-batch.

    A supernet is not compiled: every step runs another part of it.
    """
    return len(regions(module, "train")) if isinstance(module, StageModule) else 0


class Compiling:
    """`torch.compile` for a stage, with a fallback so that a failed compilation never ends a run.

    Attributes:
        given_up: whether functions now run without being compiled.
    """

    def __init__(self, tell: Tell | None = None) -> None:
        self.tell = tell or logging.getLogger("progc").warning
        self.given_up = False
        self._again = False

    def __call__(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Returns the compiled function. If compiling fails at a call, it is tried again; then the function runs."""
        compiled = torch.compile(function, **options)

        def guarded(*values: Any) -> Any:
            return self.attempt(lambda: compiled(*values), lambda: function(*values))

        return guarded

    def attempt(self, compiled: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """Calls `compiled`; after a second failure to compile, here or elsewhere in the stage, calls `otherwise`.

        A compilation fails before anything runs: no buffer has been written to and no random number drawn.
        """
        while not self.given_up:
            try:
                return compiled()
            except TorchDynamoException as error:
                self._failed(error)
        return otherwise()

    def _failed(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", None) or error  # the error of the backend says more
        reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
        self.given_up, self._again = self._again, True
        if self.given_up:
            self.tell(f"torch.compile failed again: {reason}; the stage trains uncompiled, which is slower")
        else:
            self.tell(f"torch.compile failed: {reason}; trying once more with an empty cache")
            empty_cache()


def empty_cache() -> None:
    """Points this process, and those it starts, to an empty cache of compiled code; the old cache stays."""
    from torch._inductor.utils import clear_caches

    folder = tempfile.mkdtemp(prefix="progc-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ.pop("TRITON_CACHE_DIR", None)  # follows Inductor's
    torch._dynamo.reset()
    clear_caches()
