"""The next stage compiled while the present one trains. Whatever happens there, training goes on."""

from __future__ import annotations

import time
from typing import Any

import torch

from progc.emit import emit
from progc.emit.ahead import Ahead, compile_ahead, compiled_in_place
from progc.emit.stage_module import StageModule
from progc.program import Program
from progc.train.settings import Settings
from progc.train.stepping import AMP_DTYPES


class NextStage:
    """Compiles what a stage will need.

    Attributes:
        failed: why it did not work, for people; None if it did, so far. The stage is then compiled where it begins.
        waited: seconds that `finish` took.
    """

    def __init__(
        self,
        outline: Program,
        settings: Settings,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        device: torch.device,
        present: tuple[Program, tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> None:
        """
        Args:
            outline: the stage's program; its tensors may be deferred and stay so: no second set of weights is made.
            call: positional and keyword inputs at the size of a micro-batch; values and devices do not matter.
            device: where the stage will train.
            present: outline and inputs of the stage that trains, whose regions are compiled by now: what the next one
                shares with it is not compiled again.
        """
        self.failed: str | None = None
        self.waited = 0.0
        self._ahead: Ahead | None = None

        def hollow(program: Program) -> StageModule:
            return emit(program, settings.compile, recompute=settings.recompute, modes=("train",), hollow=True)

        try:
            autocast = AMP_DTYPES[settings.amp]
            if present is not None:
                compiled_in_place(present[0], hollow(present[0]), *present[1], autocast=autocast, device=device)
            self._ahead = compile_ahead(outline, hollow(outline), *call, autocast=autocast, device=device)
        except Exception as error:  # kernels, files and processes raise many types; none is worth the run
            self.failed = _said(error)

    def finish(self, timeout: float | None = None) -> bool:
        """Waits until everything is in the cache of this process; False if it is to be compiled in place.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return False
        start = time.perf_counter()
        try:
            done = ahead.finish(timeout)
        except Exception as error:  # a full disk, say
            done, self.failed = False, _said(error)
            self._cancelled(ahead)
        self.waited = time.perf_counter() - start
        if not done:
            self.failed = self.failed or "the process that compiles ended without having compiled everything"
        return done

    def cancel(self) -> None:
        """Ends it, if it still runs, and removes what it made."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._cancelled(ahead)

    def _cancelled(self, ahead: Ahead) -> None:
        try:
            ahead.cancel()
        except Exception as error:
            self.failed = _said(error)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
