"""Running the command line in a test: in this process for speed, or as a real process where that matters."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from progc.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def in_process(capsys: pytest.CaptureFixture[str]) -> Command:
    """`run("grow", source, ...)` in this process; arguments become text."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def in_subprocess(arguments: Sequence[str | Path], *, cwd: Path, environment: dict[str, str] | None = None) -> Outcome:
    """`python -m progc ...` in `cwd`."""
    done = subprocess.run(
        [sys.executable, "-m", "progc", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def files_below(folder: Path) -> set[str]:
    """Every path below `folder`, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
