"""The folder of a run, signals that stop it, and its result.

One process group at a time trains into a folder. On SIGTERM or SIGINT a run finishes its step, saves and exits; on a
second signal it exits at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.files.writing import output_file
from progc.ir.tensor_file import write_tensors
from progc.ranks.agreeing import raise_together

if TYPE_CHECKING:
    import torch
    from torch import nn

    from progc.lift.averages import Averages

LOCK = ".lock"


@contextlib.contextmanager
def held(run: Path, writes: bool = True) -> Iterator[None]:
    """Creates the folder and locks it against other processes, until this one leaves the context or dies.

    Do not nest it: a process that closes a second descriptor of the lock file releases the lock.

    Args:
        run: folder of the run.
        writes: whether this is the rank that writes; only that rank takes the lock, and its result reaches all ranks.

    Raises:
        InputError: the folder is a file, the disk refuses, or another process trains into it; on every rank.
    """
    descriptor, failure = None, None
    try:
        descriptor = _taken(run) if writes else None
    except InputError as error:
        failure = error
    raise_together(failure)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _taken(run: Path) -> int:
    """Takes the lock; returns its descriptor."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise InputError(f"run folder {run} cannot be used: {error.strerror or error}; choose another") from error
    if not _locked(descriptor):
        os.close(descriptor)
        raise InputError(f"another process trains into {run}; wait until it ends, or choose another folder")
    return descriptor


def _locked(descriptor: int) -> bool:
    """Locks for this process only: a `flock`, which filelock uses, would outlive a kill in forked workers."""
    try:
        import fcntl
    except ImportError:  # this system has no such locks
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # data loader workers do not inherit it
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_results(run: Path, module: nn.Module, ema: Averages | None) -> None:
    """Writes the weights of a finished run, and those of each averaged copy, under the names of the user's model.

    Raises:
        InputError: the disk refuses.
    """
    write_weights(run / "model.safetensors", module.state_dict())
    for decay in ema.decays if ema is not None else ():
        assert ema is not None
        write_weights(run / f"model-ema-{decay!r}.safetensors", ema.tensors[decay])


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file atomically; an existing file is replaced.

    Raises:
        InputError: the disk refuses.
    """
    with output_file(path, "free space") as temporary:
        write_tensors(temporary, {name: tensor.detach() for name, tensor in tensors.items()})


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Asked:
    """Remembers whether a signal asked the run to end.

    Attributes:
        signal: number of the first signal; None if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal by remembering it: saving in the middle of a step would save half a step."""
        if self.signal is not None:
            # A checkpoint is either complete or absent, so exiting at once loses nothing that was saved.
            os._exit(128 + number)
        self.signal = number


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
    """Turns signals into requests inside the context; outside the main thread Python cannot handle signals."""
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
    """The result of a run.

    Attributes:
        run: folder of the run.
        step: optimizer steps done.
        finished: whether the whole schedule is done.
        signal: number of the signal that stopped the run; None otherwise.
        metrics: results of the last validation.
        seconds: seconds that the run has taken so far, including those before it was interrupted.
        skipped: number of steps that were skipped.
        skipped_samples: number of samples in them, over all ranks.
        skipped_at: the first of these steps; `metrics.jsonl` has all, with the indices of their samples.
    """

    run: Path
    step: int
    finished: bool
    signal: int | None
    metrics: Mapping[str, float]
    seconds: float = 0.0
    skipped: int = 0
    skipped_samples: int = 0
    skipped_at: tuple[int, ...] = ()
