"""The folder of a run: one process group at a time writes into it.

SIGTERM and SIGINT: the step at hand is finished, all is saved, the process exits. A second one does not wait.

How a run ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.files.writing import sync
from progc.ir.tensor_file import write_tensors
from progc.ranks.gathering import agreed

if TYPE_CHECKING:
    import torch

LOCK = ".lock"


@contextlib.contextmanager
def held(run: Path, writes: bool = True) -> Iterator[None]:
    """Makes the folder and keeps other processes from training into it, until this one leaves or dies.

    Not to be nested: a process that closes a second descriptor of the lock's file lets go of the lock.

    Args:
        writes: whether this is the rank that writes; the others hear whether it may.

    Raises:
        InputError: it is a file, the disk refuses, or another process trains there; on every rank.
    """
    descriptor, failure = None, None
    try:
        descriptor = _taken(run) if writes else None
    except InputError as error:
        failure = error
    agreed(failure)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _taken(run: Path) -> int:
    """The lock, as an open file."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise InputError(f"run folder {run} cannot be used: {error.strerror or error}; choose another") from error
    if not _locked(descriptor):
        os.close(descriptor)
        raise InputError(f"another process trains into {run}; wait for its end, or choose another folder")
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # no such locks here
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by processes that load samples
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes safetensors, whole or not at all; an older file is replaced.

    Raises:
        InputError: the disk refuses.
    """
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}"
    try:
        write_tensors(temporary, {name: tensor.detach() for name, tensor in tensors.items()})
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; free space") from error
    finally:
        temporary.unlink(missing_ok=True)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Asked:
    """Whether somebody asked the run to end.

    Attributes:
        signal: number of the first signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler. It only remembers: saving in the middle of a step would save half a step."""
        if self.signal is not None:
            # Checkpoints are whole or not there at any moment, so leaving at once loses nothing that was saved.
            os._exit(128 + number)
        self.signal = number


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
    """Signals ask, instead of ending the process, inside; outside of a main thread they cannot be listened to."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        run: its folder.
        step: optimizer steps done.
        finished: whether the schedule came to its end.
        signal: number of the signal that ended it before; None otherwise.
        metrics: of the last validation.
        seconds: that the run took so far, those before it was interrupted included.
    """

    run: Path
    step: int
    finished: bool
    signal: int | None
    metrics: Mapping[str, float]
    seconds: float = 0.0
