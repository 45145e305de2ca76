"""The kill trial of bench/kill.py, with a few kills: it works, and finds nothing wrong."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train import killing

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_runs_end_as_those_that_were_not() -> None:
    """In a process of its own, which forks: it must have no threads. The seed begins with a boundary and a save."""
    command = [sys.executable, str(ROOT / "bench" / "kill.py"), "--kills", "3", "--seed", "837", "--no-file"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = ast.literal_eval(done.stdout.strip())
    kills = found["kills"]
    assert found["wrong"] == [] and sum(kills.values()) == 3 and kills["boundary"] and kills["save"]


def test_a_run_that_ends_badly_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text("Traceback ...")
    monkeypatch.setattr(killing, "forked", lambda *args: 0)
    monkeypatch.setattr(killing, "attempt", lambda *args: 1)
    monkeypatch.setattr(killing, "outcome", lambda run: {})
    monkeypatch.setattr(killing, "lines", lambda run: [])
    found = killing.trial(tmp_path, 1, 0, None)  # type: ignore[arg-type]
    assert len(found["wrong"]) == 10 and "exit code 1" in found["wrong"][0]
