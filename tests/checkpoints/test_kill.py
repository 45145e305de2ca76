"""A SIGKILL anywhere in a save leaves a run whose newest checkpoint is whole; two processes cannot mix one step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from progc.checkpoints import latest, save
from progc.checkpoints.writing import clean
from tests.checkpoints.running import new_state

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def script(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.checkpoints.killing", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_kills_at_every_call_of_a_save(tmp_path: Path) -> None:
    """The step before stays the newest until the new one has its name, and what is left is removed."""
    found = script("inside", tmp_path)
    assert found["wrong"] == []
    assert found["kills"].keys() == {"os.fsync", "os.rename", "shutil.rmtree"}
    assert found["kills"]["os.fsync"] >= 2 * 8 and found["kills"]["os.rename"] == 2 * 2  # its name, and the removal


@pytest.mark.slow  # the test above kills at every call of a save, in one process for each
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """As bench/checkpoint_faults.py does it; whether a kill falls into a save is not known here."""
    found = script("kill", tmp_path / "run", 4, 1)
    assert found["wrong"] == [] and found["kills"] == 4


def test_two_processes_save_one_step(tmp_path: Path) -> None:
    found = script("race", tmp_path / "run", 8)
    assert found["wrong"] == [] and found["left"] == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, new_state(), 1)
    from progc.checkpoints.writing import _here

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / f".saving-step-00000002-{_here()}-{gone.pid}-0123abcd"
    alive = tmp_path / f".saving-step-00000002-{_here()}-{os.getpid()}-0123abcd"
    foreign = tmp_path / ".removing-step-00000002-elsewhere-1-0123abcd"
    other = tmp_path / ".something-step-else"
    for folder in (dead, alive, foreign, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
    assert clean(tmp_path) == [dead.name]
    old = time.time() - 2 * 24 * 3600
    os.utime(foreign, (old, old))
    assert clean(tmp_path) == [foreign.name]
    assert alive.is_dir() and other.is_dir() and latest(tmp_path) == tmp_path / "step-00000001"
