"""Shows the progress of a run, and measures its speed.

`Progress` shows a live line in a terminal and prints plain lines elsewhere, on stderr and on one rank. `Meter` measures
the samples per second of a stage, its share of the peak FLOPs of the device (MFU), and its memory.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

import torch

_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Shows stage, step, loss, samples per second, remaining time and memory."""

    def __init__(self, stream: TextIO | None = None, *, shows: bool = True) -> None:
        """
        Args:
            stream: where lines go; None is stderr.
            shows: False shows nothing, as on all ranks but one.
        """
        self._stream, self._shows = stream or sys.stderr, shows
        self._bar: Any = None
        self._task: Any = None
        self._total = self._step = 0
        self._stage = ""
        self._told = time.monotonic()
        self._began: float | None = None
        self._first = self._stop = 0
        self._later = 0.0
        self._loss, self._measured = "", ""

    def __enter__(self) -> Progress:
        if self._shows and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.fields[stage]}", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
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

    def stage(self, index: int, count: int, step: int, stop: int, total: int, later: float | None = None) -> None:
        """Announces that a stage begins or resumes at `step`.

        Args:
            index: index of the stage.
            count: number of stages.
            step: optimizer steps done.
            stop: step at which the stage ends.
            total: optimizer steps of the run.
            later: duration of all later stages, in steps of this stage; None assumes that all steps take equally long.
        """
        self._stage, self._total, self._step = f"stage {index + 1}/{count}", total, step
        self._stop, self._later = stop, total - stop if later is None else later
        self._began = None
        if self._bar is not None and self._task is None:
            self._task = self._bar.add_task("", total=total, completed=step, stage=self._stage)
        self._say(f"{self._stage}: steps {step} to {stop} of {total}")

    def step(self, step: int, loss: float | None) -> None:
        """Shows that a step is done.

        Args:
            step: optimizer steps done.
            loss: loss of the last step whose loss is known; None if none is.
        """
        now = time.monotonic()
        if self._began is None:  # the first step may include a compilation
            self._began, self._first = now, step
        self._step, self._loss = step, "" if loss is None else f"loss {loss:.4f}"
        if self._bar is not None and self._task is not None:
            text = f"{self._loss} {self._measured} {self._left(now)}"
            self._bar.update(self._task, completed=step, description=text, stage=self._stage)
        elif self._shows and now - self._told >= _EVERY:
            self._told = now
            self._print(f"{self._stage}  step {step}/{self._total}  {self._loss}  {self._measured}  {self._left(now)}")

    def _left(self, now: float) -> str:
        """Remaining time; empty before two steps are done."""
        if self._began is None or self._step <= self._first:
            return ""
        pace = (now - self._began) / (self._step - self._first)
        seconds = pace * (max(self._stop - self._step, 0) + self._later)
        return f"{datetime.timedelta(seconds=round(seconds))} left"

    def measured(self, values: Mapping[str, Any]) -> None:
        """Shows a reading of the meter."""
        parts = [f"{values['samples_per_second']:.0f} samples/s"]
        if values.get("mfu") is not None:
            parts.append(f"{values['mfu']:.0%} MFU")
        if values.get("memory") is not None:
            parts.append(f"{values['memory'] / 2**30:.2f} GiB")
        self._measured = "  ".join(parts)

    def validated(self, values: Mapping[str, float]) -> None:
        """Shows the results of a validation."""
        self._say(f"step {self._step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def crossed(self, record: object) -> None:
        """Shows the record of a boundary (a `progc.train.boundary.Record`)."""
        self._say(str(record))

    def note(self, text: str) -> None:
        """Shows a remark."""
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


PEAK_FLOPS = {
    # FLOPs per second of dense bf16 matrix products, from data sheets; sparse figures are twice as large.
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "V100": 125e12,  # fp16
    "MI300X": 1307e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Returns the peak of a device in FLOPs per second (bf16); None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


class Meter:
    """Counts samples and seconds between two readings."""

    def __init__(self, flops_per_step: int | None, device: torch.device) -> None:
        """
        Args:
            flops_per_step: FLOPs of one optimizer step on this rank (a multiply-add is two); None if unknown.
            device: device on which the stage trains.
        """
        self.flops, self.device, self.peak = flops_per_step, device, peak_flops(device)
        self.begin()

    def begin(self) -> None:
        """Starts a new count."""
        self._since = self._last = time.perf_counter()
        self._samples = self._steps = 0
        self._waiting = 0.0

    def arrived(self) -> None:
        """Notes that the data of a step have arrived: the time since the last step was spent waiting for them."""
        self._waiting += time.perf_counter() - self._last

    def step(self, samples: int) -> None:
        """Counts a step."""
        self._samples += samples
        self._steps += 1
        self._last = time.perf_counter()

    def read(self) -> dict[str, Any]:
        """Returns `samples_per_second`, `mfu` or None, `data_wait` (share of time) and `memory` since the last call."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        mfu = None
        if self.flops and self.peak:
            mfu = self.flops * self._steps / seconds / self.peak
        found = {
            "samples_per_second": self._samples / seconds,
            "data_wait": min(self._waiting / seconds, 1.0),
            "mfu": mfu,
            "memory": memory(self.device),
        }
        self.begin()
        return found


def memory(device: torch.device) -> int | None:
    """Returns the peak memory so far in bytes, of the GPU or else of the process; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
