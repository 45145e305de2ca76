"""Writes metrics as JSON lines, the source of plots, and on request to TensorBoard and Weights & Biases too.

Values that training computes are reproducible; values that depend on the clock or the machine are under `measured`. A
run that resumes from a checkpoint removes the lines written after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from progc.errors import InputError, one_line
from progc.files.writing import finite, replacing

FILE = "metrics.jsonl"
LONGEST = 1e10
"""Upper limit, in seconds, for the duration of a run; larger numbers in a file are ignored."""
_LINE = 1 << 20  # bytes; lines of progc have some hundreds


class Metrics:
    """The metrics of one run."""

    def __init__(
        self,
        run: Path,
        *,
        writes: bool = True,
        tensorboard: bool = False,
        wandb: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            run: folder of the run.
            writes: whether this process writes anything.
            tensorboard: whether to also write event files into `run/tensorboard`.
            wandb: arguments of `wandb.init`; None does not use W&B.

        Raises:
            InputError: the file cannot be written, or a library is missing.
        """
        self.path, self.writes = run / FILE, writes
        self._wandb: Any = None
        if not writes:
            return
        self._boards = None if not tensorboard else _Boards(run / "tensorboard")
        # Seconds continue from the last line: a plot over time has no gap for the time between two starts.
        self._before = _last_seconds(self.path)
        self._start = time.monotonic()
        if wandb is not None:
            self._wandb = _wandb(run, wandb)
        try:
            self._file = _appending(self.path)
        except OSError as error:
            if self._wandb is not None:
                self._wandb.finish(exit_code=1)
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, all its starts together; 0 if this process does not write."""
        return round(self._before + time.monotonic() - self._start, 3) if self.writes else 0.0

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line: `kind`, `step`, the values, and `measured` with the seconds of the run so far.

        Raises:
            InputError: the disk refuses.
        """
        if not self.writes:
            return
        measured = {"seconds": self.seconds, **values.get("measured", {})}
        line = {"kind": kind, "step": step, **values, "measured": measured}
        try:
            self._file.write(json.dumps(finite(line), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _refused(self.path, error) from error
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in {**values, **measured}.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if self._boards is not None:
            try:
                self._boards.write(numbers, step)
            except OSError as error:
                raise _refused(self._boards.folder, error) from error
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def cut(self, step: int, stage: int, *, searching: bool = False) -> None:
        """Removes the lines written after the checkpoint of `step` in `stage`, and an unfinished last line.

        A boundary is written at the step at which the previous stage ended; it stays if that stage is over. So does
        what a search decided.

        Args:
            searching: whether the search of `stage` has not ended in that checkpoint.

        Raises:
            InputError: the disk refuses.
        """
        if not self.writes:
            return
        self._file.close()
        try:
            with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
                for line in _lines(self.path):
                    if _before(line, step, stage, searching):
                        file.write(json.dumps(finite(line), allow_nan=False) + "\n")
            self._file = _appending(self.path)
        except OSError as error:
            raise _refused(self.path, error) from error
        if self._boards is not None:
            self._boards.cut(step)
        self._before, self._start = _last_seconds(self.path), time.monotonic()

    def close(self) -> None:
        """Closes the file and the trackers."""
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # a line that could not be written cannot be written now
            self._file.close()
        if self._boards is not None:
            with contextlib.suppress(OSError):
                self._boards.close()
        if self._wandb is not None:
            self._wandb.finish()


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; free space and run the same command again to resume"
    )


def _before(line: Mapping[str, Any], step: int, stage: int, searching: bool) -> bool:
    if line.get("kind") in ("boundary", "decision"):
        last = line.get("stage", 0)
        return isinstance(last, int) and last <= stage - (searching and line["kind"] == "decision")
    return int(line["step"]) <= step


def _appending(path: Path) -> TextIO:
    """Opens a regular file for appending; a link could lead elsewhere, and a pipe would wait for a reader."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return os.fdopen(descriptor, "a", encoding="utf-8")


def texts(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file of any size; of a line longer than 1 MiB, only the beginning."""
    torn = False
    while text := file.readline(_LINE):
        whole = text.endswith(b"\n")
        if not torn:
            yield text
        torn = not whole


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a file; a line that is not a record was cut off by a kill, and is skipped."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for text in texts(file):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _last_seconds(path: Path) -> float:
    seconds = 0.0
    for line in _lines(path):
        measured = line.get("measured")
        value = measured.get("seconds") if isinstance(measured, dict) else None
        if isinstance(value, (int, float)) and seconds < value < LONGEST:
            seconds = float(value)
    return seconds


class _Boards:
    """Event files of TensorBoard. A file begun after a resume purges later steps of the files before it."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise InputError(
                "TensorBoard is not installed; pip install 'progc[tensorboard]', or set trackers.tensorboard to false"
            ) from error
        self.folder = folder
        self._writer: Any = None
        self._purge: int | None = None

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge)
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def cut(self, step: int) -> None:
        """Makes the next file purge what was written for later steps."""
        self.close()
        self._purge = step + 1 if step else 0

    def close(self) -> None:
        """Closes the current file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _wandb(run: Path, options: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            "Weights & Biases is not installed; pip install 'progc[wandb]', or leave trackers.wandb out"
        ) from error
    try:
        return wandb.init(**{"dir": str(run), **options})
    except Exception as error:  # wrong arguments, no login, no network: the library raises many types
        reason = one_line(error)
        raise InputError(
            f"trackers.wandb: {reason}; fix these arguments of wandb.init, or leave trackers.wandb out"
        ) from error
