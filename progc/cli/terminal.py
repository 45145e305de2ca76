"""What a user sees: results on stdout, progress and notes on stderr.

While a command runs, `sys.stdout` points to stderr, so that a print in the user's file or a library never
lands between the results. In a terminal the present phase shows as a spinner with its time. Piped, phases
are plain lines; they are held back for a while, because a command that ends in an error for the user says
that one line and nothing else.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

_HELD_BACK = 15.0  # seconds; a command that runs longer reports its phases as they come


def visible(text: str) -> str:
    """The text with control characters written out: names in files must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class Terminal:
    """Output of one command. `seconds` holds the duration of every phase so far, in order."""

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
        """Everything printed by others goes to stderr; notes and phases appear at the end, unless it raises."""
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
        """Shows that `name` is going on and records its seconds; the same name adds up."""
        start = time.perf_counter()
        with self._spinner(name):
            yield
        spent = time.perf_counter() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)
        if not self._stderr.isatty():
            self._say(f"progc: {name}: {spent:.1f} s")

    def note(self, text: str) -> None:
        """A remark the user should read, such as where the weights came from."""
        self._say(f"progc: {visible(text)}")

    def print(self, text: str = "") -> None:
        """A piece of the result, as it is: rich would read `f32[b]` as markup and wrap graph lines when piped."""
        print(visible(text), file=self._stdout, flush=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns, one row a line, the last column as it is."""
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            self.print("  ".join([*cells, row[-1]]).rstrip())

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
