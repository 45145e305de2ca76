"""SIGTERM and SIGINT: the step at hand is finished, all is saved, the process exits. A second one does not wait."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

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
