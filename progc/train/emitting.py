"""A stage's program as the module that trains: compiled where compiling is right on this machine.

Compiling may fail, by a damaged cache as well as by a fault of the compiler. It is then tried once more with an empty
cache of this process's own (the shared one is left alone: others may use it); after that functions run as they are.
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
from torch._dynamo.exc import TorchDynamoException

from progc.emit import emit, regions
from progc.emit.canary import check_compiler
from progc.emit.stage_module import StageModule
from progc.ir.program import Program
from progc.train.settings import Settings

Tell = Callable[[str], None]


def emitted(program: Program, settings: Settings, device: torch.device, tell: Tell | None = None) -> StageModule:
    """The stage module of a program; train graphs are compiled, eval graphs are not.

    Args:
        tell: hears of compilations that failed; None: logging.

    Raises:
        CheckError: compiled gradients are wrong on this machine.
    """
    if settings.compile == "eager":
        return emit(program, "eager", recompute=settings.recompute)
    # Every stage brings functions of its own; what ran before must not count against the limit of one function.
    torch._dynamo.reset()
    # A backward that cannot be compiled then says so in the forward, where it can still run without.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    compiling = Compiling(tell)
    compiling.attempt(lambda: check_compiler(device.type), lambda: None)
    return emit(program, settings.compile, recompute=settings.recompute, modes=("train",), compiler=compiling)


def expected_compiles(module: StageModule) -> int:
    """How many functions a stage compiles for its train graph, at one size of micro-batch."""
    return len(regions(module, "train"))


class Compiling:
    """`torch.compile` for a stage, which never ends a run.

    Attributes:
        given_up: whether functions run as they are by now.
    """

    def __init__(self, tell: Tell | None = None) -> None:
        self.tell = tell or logging.getLogger("progc").warning
        self.given_up = False
        self._again = False

    def __call__(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The function compiled; where that fails at a call, compiled again, or as it is."""
        compiled = torch.compile(function, **options)

        def guarded(*values: Any) -> Any:
            return self.attempt(lambda: compiled(*values), lambda: function(*values))

        return guarded

    def attempt(self, compiled: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """What a compiled function gives; after a second failure to compile, here or elsewhere, what the other does.

        A compilation fails before anything runs: no buffer was written to, and no random number drawn.
        """
        while not self.given_up:
            try:
                return compiled()
            except TorchDynamoException as error:
                self._failed(error)
        return otherwise()

    def _failed(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", None) or error  # what a backend raised says more
        reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
        self.given_up, self._again = self._again, True
        if self.given_up:
            self.tell(f"torch.compile failed again: {reason}; the stage trains without it, slower")
        else:
            self.tell(f"torch.compile failed: {reason}; trying once more with an empty cache")
            empty_cache()


def empty_cache() -> None:
    """Lets this process, and those that it starts, go on with an empty cache of compiled code; the old one stays."""
    from torch._inductor.utils import clear_caches

    folder = tempfile.mkdtemp(prefix="progc-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ.pop("TRITON_CACHE_DIR", None)  # follows Inductor's
    torch._dynamo.reset()
    clear_caches()
