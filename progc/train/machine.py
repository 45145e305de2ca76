"""How the device computes during a run, and a trace of some of its steps. Neither changes what is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from progc.files.writing import output_file
from progc.train.settings import Settings, profiled


@contextlib.contextmanager
def device_settings(settings: Settings) -> Iterator[None]:
    """Applies `tf32` and `cudnn_benchmark` inside, and restores torch's own settings afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    if settings.tf32 is not None:
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32
    if settings.cudnn_benchmark:
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


class Profile:
    """Writes a trace of some steps into the run folder, for Perfetto or chrome://tracing.

    A run that is resumed inside these steps writes a trace of those that are left, one resumed after them none.
    """

    def __init__(
        self, run: Path, settings: Settings, rank: int, device: torch.device, tell: Callable[[str], None]
    ) -> None:
        """
        Args:
            run: folder of the run.
            settings: settings of the run; without `profile`, this object does nothing.
            rank: rank of this process; every rank writes its own trace.
            device: device on which this process trains.
            tell: called with a message when the trace is written.
        """
        self._start, self._stop = (0, 0) if settings.profile is None else profiled(settings.profile)
        self.path = run / f"trace-{self._start}-{self._stop}-rank{rank}.json"
        self._device, self._tell = device, tell
        self._running: Any = None
        self._label: Any = None

    def begin(self, step: int) -> None:
        """Begins the trace if the next step is in it; called before a step, when `step` steps of the run are done."""
        if not self._start <= step < self._stop:
            return
        if self._running is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._running = torch.profiler.profile(activities=kinds)
            self._running.__enter__()
        self._label = torch.profiler.record_function(f"step {step}")
        self._label.__enter__()

    def end(self, step: int) -> None:
        """Ends the trace if no later step is in it; called after a step, when `step` steps of the run are done.

        Raises:
            InputError: the disk refuses.
        """
        label, self._label = self._label, None
        if label is not None:
            label.__exit__(None, None, None)
        if self._running is not None and step >= self._stop:
            self.close()

    def close(self) -> None:
        """Ends the trace if it runs, and writes it.

        Raises:
            InputError: the disk refuses.
        """
        running, self._running = self._running, None
        if running is None:
            return
        running.__exit__(None, None, None)
        with output_file(self.path, "free space, or leave out train.profile") as temporary:
            temporary.parent.mkdir(parents=True, exist_ok=True)  # of another machine, where rank 0 made none
            running.export_chrome_trace(str(temporary))
        self._tell(f"trace written: {self.path}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._running is not None:  # the error of the run is the one to raise
            self._running.__exit__(None, None, None)
