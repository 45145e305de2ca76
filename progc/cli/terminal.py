"""What a user sees: results on stdout, progress and notes on stderr.

While a command runs, `sys.stdout` points to stderr, so that prints of the user's file or of a library never mix with
the results. In a terminal, a spinner shows the current phase and its time. When stderr is piped, each phase is a plain
line. These lines are held back for a while, because a command that ends in a user error prints only that error.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from progc.files.text import aligned, visible

_HELD_BACK = 15.0  # seconds; a command that runs longer prints its phases as they end


class Terminal:
    """The output of one command. `seconds` holds the duration of every phase so far, in order."""

    def __init__(self) -> None:
        self._stdout: TextIO = sys.stdout
        self._stderr: TextIO = sys.stderr
        self.seconds: dict[str, float] = {}
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._live = False
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Terminal]:
        """Redirects prints of others to stderr, and shows notes and phases at the end unless the body raises."""
        self._timer = threading.Timer(_HELD_BACK, self._release)
        self._timer.daemon = True
        self._timer.start()
        try:
            with contextlib.redirect_stdout(self._stderr):
                yield self
            self._release()
        finally:
            self._timer.cancel()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows a phase while it runs and records its seconds; phases of the same name add up."""
        start = time.perf_counter()
        with self._spinner(name):
            yield
        spent = time.perf_counter() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)
        if not self._stderr.isatty():
            self._say(f"progc: {name}: {spent:.1f} s")

    def note(self, text: str) -> None:
        """Prints a remark for the user, such as where the weights came from."""
        self._say(f"progc: {visible(text)}")

    def print(self, text: str = "") -> None:
        """Prints part of the result unchanged: rich would read `f32[b]` as markup, and wrap graph lines when piped."""
        print(visible(text), file=self._stdout, flush=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Prints aligned columns, one line per row; no row, no line."""
        if rows:
            self.print(aligned(rows))

    def _say(self, line: str) -> None:
        with self._lock:
            if self._live:
                print(line, file=self._stderr, flush=True)
            else:
                self._lines.append(line)

    def _release(self) -> None:
        with self._lock:
            for line in self._lines:
                print(line, file=self._stderr, flush=True)
            self._lines.clear()
            self._live = True

    @contextlib.contextmanager
    def _spinner(self, name: str) -> Iterator[None]:
        if not self._stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=self._stderr), transient=True) as progress:
            progress.add_task(name, total=None)
            yield
