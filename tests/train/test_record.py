"""The files that say what a run is: a second process leaves those of a run that is under way alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from progc.errors import InputError
from progc.train import record
from progc.train.config import Config
from tests.train.running import schedule

HOLD = """
import sys
from pathlib import Path
from progc.train.run_folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_is_under_way_is_left_alone(tmp_path: Path) -> None:
    config = Config(source="net.py")
    record.write(tmp_path, config, schedule(), ["progc", "train"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"run.json", "config.json", "plan.json"} <= before.keys()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process trains into"):
            record.write(tmp_path, config, schedule(), ["progc", "train"])
        other.communicate("")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    record.write(tmp_path, config, schedule(), ["progc", "train"])
    assert (tmp_path / "run.json").read_bytes() != before["run.json"]


def test_a_start_that_was_killed_before_it_wrote_anything(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert record.check(tmp_path, Config(source="net.py")) is False
