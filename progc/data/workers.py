"""The processes that load samples: they outlive signals to the whole job, and end with the loop that uses them.

A job is stopped by a signal to all of its processes. The training process still needs samples to finish its step, so
workers ignore such signals until the training process says that it is done with them. Otherwise they would also ignore
the signal by which Python ends them, and the training process would wait for them for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import multiprocessing.process
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from progc.errors import InputError, OutsideError

_PATIENCE = 2.0
"""Seconds after which a worker that does not end, in a system call say, is killed."""

_LONGEST = 60.0
"""Seconds within which a process is gone whose connection broke; it may write its memory to disk before."""


class Workers:
    """The worker processes of one loader."""

    def __init__(self, count: int) -> None:
        """
        Args:
            count: number of worker processes; with 0 there is nothing to end.
        """
        self._count = count
        self._done: Any = multiprocessing.RawValue(ctypes.c_bool, False) if count else None
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def prepare(self, worker: int) -> None:
        """Runs at the beginning of a worker (`worker_init_fn` of a DataLoader)."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._asked)

    def started(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Returns the iterator of a loader, whose workers start with it."""
        if not self._count:
            return iter(loader)
        before = {process.pid for process in multiprocessing.active_children()}
        parts = iter(loader)
        self._processes = [process for process in multiprocessing.active_children() if process.pid not in before]
        return parts

    def received(self, parts: Iterator[Any], count: int) -> list[Any]:
        """Returns the next items of an iterator that `started` returned, `count` of them or what is left.

        Raises:
            InputError: a worker died.
        """
        try:
            return list(itertools.islice(parts, count))
        except (OSError, EOFError, RuntimeError) as error:
            if self._processes and not isinstance(error, RuntimeError):
                # A connection breaks before the system tells that the process at its other end is gone.
                wait([process.sentinel for process in self._processes], _LONGEST)
            died = self.died()
            if died is None:
                raise
            raise died from error

    def died(self) -> InputError | None:
        """Returns the error to raise if a worker has died; None if none has."""
        for process in self._processes:
            code = process.exitcode
            if not code:
                continue
            if code > 0:
                return InputError(
                    f"a process that loads samples ended with exit code {code}; use train.workers=0 to see why"
                )
            name = signal.Signals(-code).name
            if name in ("SIGKILL", "SIGBUS"):
                memory = "memory" if name == "SIGKILL" else "shared memory (/dev/shm)"
                return OutsideError(
                    f"a process that loads samples was ended by {name}, most often for lack of {memory}; use fewer "
                    "train.workers or free memory, and run the same command again to resume"
                )
            return InputError(
                f"a process that loads samples was ended by {name}; use train.workers=0 to see which sample does it"
            )
        return None

    def end(self) -> None:
        """Ends the workers, whatever they do."""
        self.release()
        for process in self._processes:
            process.terminate()
        until = time.monotonic() + _PATIENCE
        for process in self._processes:
            process.join(max(until - time.monotonic(), 0.0))
        with _unheard():
            for process in self._processes:
                if process.is_alive():
                    process.kill()
                    process.join()

    def release(self) -> None:
        """Lets workers obey the signal that ends them."""
        if self._done is not None:
            self._done.value = True

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._done.value:
            os._exit(0)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keeps torch from raising an error inside for a worker that is killed on purpose."""
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except (AttributeError, ValueError):  # a system without this signal, or not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
