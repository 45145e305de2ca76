"""Running the command line in a test: in this process for speed, or as a real process where that matters."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest

from progc.cli import main

NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x):
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x))))

class Net(nn.Module):
    def __init__(self, dim=8, depth=2):
        super().__init__()
        self.embed = nn.Linear(5, dim)
        self.blocks = nn.ModuleList([Block(dim) for _ in range(depth)])
        self.head = nn.Linear(dim, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def big():
    return Net(16, 4)

def small():
    return Net(4, 1)

def example_inputs():
    return (torch.randn(2, 5),)
"""
"""A user's file: a residual network, in three sizes."""

DATA = """
def datasets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    return (x, x[:, :3].argmax(1)), (x[:16], x[:16, :3].argmax(1))
"""
"""Samples for it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def in_process(capsys: pytest.CaptureFixture[str]) -> Command:
    """`run("grow", source, ...)` in this process; arguments become text.

    A command never counts as a long one, whose phases are printed, however busy the machine is.
    """

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with mock.patch("progc.cli.terminal._HELD_BACK", 1e6):
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
        timeout=1800,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def files_below(folder: Path) -> set[str]:
    """Every path below `folder`, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process."""
    return in_process(capsys)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A user's file with a network and its samples."""
    path = tmp_path / "net.py"
    path.write_text(NET + DATA)
    return path
