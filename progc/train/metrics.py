"""Metrics as JSON lines: the source of plots. TensorBoard and Weights & Biases get a copy where asked for.

What training computes is reproducible; what the clock or the machine says stands under `measured`. A run that goes on
from a checkpoint takes back the lines that came after it.
"""

from __future__ import annotations

import json
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from progc.errors import InputError
from progc.files.writing import finite, sync

FILE = "metrics.jsonl"
LONGEST = 1e10
"""Seconds that no run takes; a larger number is none of ours."""
_LINE = 1 << 20  # bytes; ours have some hundreds


class Metrics:
    """Lines of one run."""

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
            writes: whether this process writes at all.
            tensorboard: also write event files into `run/tensorboard`.
            wandb: arguments of `wandb.init`; None: not used.

        Raises:
            InputError: the file cannot be written, or a library is missing.
        """
        self.path, self.writes = run / FILE, writes
        self._wandb: Any = None
        if not writes:
            return
        self._boards = None if not tensorboard else _Boards(run / "tensorboard")
        # Seconds of training go on where the run was: a plot over time has no gap while nothing ran.
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
        """That the run took so far; 0 where this process does not write."""
        return round(self._before + time.monotonic() - self._start, 3) if self.writes else 0.0

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line: `kind`, `step`, the values, and `measured` with the seconds that the run has taken so far."""
        if not self.writes:
            return
        measured = {"seconds": self.seconds, **values.get("measured", {})}
        line = {"kind": kind, "step": step, **values, "measured": measured}
        self._file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        self._file.flush()
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in {**values, **measured}.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if self._boards is not None:
            self._boards.write(numbers, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def cut(self, step: int, stage: int) -> None:
        """Takes back what came after the checkpoint of `step` in `stage`, and a line that was not finished.

        A boundary is written at the step at which the stage before ended; it stays if that stage is over.

        Raises:
            InputError: the disk refuses.
        """
        if not self.writes:
            return
        self._file.close()
        temporary = self.path.parent / f".{FILE}-{uuid.uuid4().hex}"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                for line in _lines(self.path):
                    if _before(line, step, stage):
                        file.write(json.dumps(finite(line), allow_nan=False) + "\n")
            sync(temporary)
            os.replace(temporary, self.path)
            self._file = _appending(self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}; free space") from error
        finally:
            temporary.unlink(missing_ok=True)
        if self._boards is not None:
            self._boards.cut(step)
        self._before, self._start = _last_seconds(self.path), time.monotonic()

    def close(self) -> None:
        """Nothing is written any more."""
        if not self.writes:
            return
        self._file.close()
        if self._boards is not None:
            self._boards.close()
        if self._wandb is not None:
            self._wandb.finish()


def _before(line: Mapping[str, Any], step: int, stage: int) -> bool:
    if line.get("kind") == "boundary":
        last = line.get("stage", 0)
        return isinstance(last, int) and last <= stage
    return int(line["step"]) <= step


def _appending(path: Path) -> TextIO:
    """The file for lines at its end; a link would let a run write elsewhere, a pipe would wait for its reader."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "a", encoding="utf-8")


def texts(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file one after another, whatever its size; of one that is longer than ours ever are, a piece."""
    torn = False
    while text := file.readline(_LINE):
        whole = text.endswith(b"\n")
        if not torn:
            yield text
        torn = not whole


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a file; what is none was torn by a kill."""
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
    """Event files of TensorBoard. One that was begun behind a checkpoint takes back what others say of later steps."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise InputError(
                "TensorBoard is not installed; pip install 'progc[tensorboard]', or leave it out"
            ) from error
        self.folder = folder
        self._writer: Any = None
        self._purge: int | None = None

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """A point of each of these curves."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge)
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def cut(self, step: int) -> None:
        """What was written of later steps does not count any more."""
        self.close()
        self._purge = step + 1 if step else 0

    def close(self) -> None:
        """The present file is whole."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _wandb(run: Path, options: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError("Weights & Biases is not installed; pip install 'progc[wandb]', or leave it out") from error
    try:
        return wandb.init(**{"dir": str(run), **options})
    except Exception as error:  # wrong arguments, no login, no network: the library has many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"trackers.wandb: {reason}; mend its arguments of wandb.init, or leave it out") from error
