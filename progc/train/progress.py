"""What a run shows while it trains: a live line in a terminal, plain lines elsewhere. On stderr, by one rank."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from progc.train.boundary import Record

_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Shows stage, step, loss, samples per second, time to go and memory."""

    def __init__(self, stream: TextIO | None = None, *, shows: bool = True) -> None:
        """
        Args:
            stream: None: stderr.
            shows: False: nothing is shown, as on all ranks but one.
        """
        self._stream, self._shows = stream or sys.stderr, shows
        self._bar: Any = None
        self._task: Any = None
        self._total = self._step = 0
        self._stage = ""
        self._told = self._began = time.monotonic()
        self._first = 0
        self._loss, self._measured = float("nan"), ""

    def __enter__(self) -> Progress:
        if self._shows and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.fields[stage]}", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False), TimeRemainingColumn(),
                console=Console(file=self._stream),
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def stage(self, index: int, count: int, step: int, stop: int, total: int) -> None:
        """A stage begins, or goes on: at `step` of `total`, until `stop`."""
        self._stage, self._total, self._step = f"stage {index + 1}/{count}", total, step
        self._began, self._first = time.monotonic(), step
        if self._bar is not None and self._task is None:
            self._task = self._bar.add_task("", total=total, completed=step, stage=self._stage)
        self._say(f"{self._stage}: steps {step} to {stop} of {total}")

    def step(self, step: int, loss: float) -> None:
        """A step is done."""
        self._step, self._loss = step, loss
        if self._bar is not None and self._task is not None:
            text = f"loss {loss:.4f} {self._measured}"
            self._bar.update(self._task, completed=step, description=text, stage=self._stage)
        elif self._shows and time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            left = (self._told - self._began) / max(step - self._first, 1) * (self._total - step)
            self._print(
                f"{self._stage}  step {step}/{self._total}  loss {loss:.4f}  {self._measured}  {left:.0f} s left"
            )

    def measured(self, values: Mapping[str, Any]) -> None:
        """What the meter read."""
        parts = [f"{values['samples_per_second']:.0f} samples/s"]
        if values.get("mfu") is not None:
            parts.append(f"{values['mfu']:.0%} MFU")
        if values.get("memory") is not None:
            parts.append(f"{values['memory'] / 2**30:.2f} GiB")
        self._measured = "  ".join(parts)

    def validated(self, values: Mapping[str, float]) -> None:
        """A validation is done."""
        self._say(f"step {self._step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def crossed(self, record: Record) -> None:
        """A boundary is behind."""
        self._say(str(record))

    def note(self, text: str) -> None:
        """A remark."""
        self._say(text)

    def _say(self, text: str) -> None:
        if not self._shows:
            return
        if self._bar is not None:
            self._bar.console.print(f"progc: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        print(f"progc: {text}", file=self._stream, flush=True)
