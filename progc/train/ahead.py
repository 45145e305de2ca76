"""The next stage compiled while the present one trains. Whatever happens there, training goes on."""

from __future__ import annotations

import time
from typing import Any

import torch

from progc.emit import emit
from progc.emit.ahead import Ahead, compile_ahead
from progc.errors import ProgcError
from progc.program import Program
from progc.train.settings import Settings
from progc.train.stepping import AMP_DTYPES


class NextStage:
    """Compiles what a stage will need.

    Attributes:
        failed: why it could not begin; None if it did. The stage is then compiled where it begins.
        waited: seconds that `finish` took.
    """

    def __init__(
        self,
        outline: Program,
        settings: Settings,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        device: torch.device,
    ) -> None:
        """
        Args:
            outline: the stage's program; values of its tensors do not matter.
            call: positional and keyword inputs at the size of a micro-batch; values do not matter.
        """
        self.failed: str | None = None
        self.waited = 0.0
        self._ahead: Ahead | None = None
        try:
            module = emit(outline, settings.compile, recompute=settings.recompute, modes=("train",))
            self._ahead = compile_ahead(outline, module, *call, modes=("train",), autocast=AMP_DTYPES[settings.amp])
        except (ProgcError, OSError, RuntimeError) as error:
            self.failed = " ".join(str(error).split()) or type(error).__name__

    def finish(self) -> bool:
        """Waits until everything is in the cache of this process; False if it is to be compiled in place."""
        if self._ahead is None:
            return False
        start = time.perf_counter()
        done = self._ahead.finish()
        self.waited = time.perf_counter() - start
        self._ahead = None
        return done

    def cancel(self) -> None:
        """Ends it."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
