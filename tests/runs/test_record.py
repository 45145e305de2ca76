"""The files that say what a run is: a second process leaves those of a run that is under way alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from progc.errors import InputError
from progc.runs import record
from progc.runs.config import Config
from progc.schedule.schedule import Schedule
from progc.train.run_folder import LOCK, held
from tests.train import running
from tests.train.running import schedule

HOLD = """
import sys
from pathlib import Path
from progc.train.run_folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

ASK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def test_a_run_that_is_under_way_is_left_alone(tmp_path: Path) -> None:
    config = Config(source="net.py")

    def start() -> None:
        with held(tmp_path):
            record.write(tmp_path, config, schedule(), ["progc", "train"])

    start()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"run.json", "config.json", "plan.json"} <= before.keys()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process trains into"):
            start()
        other.communicate("")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    start()
    assert (tmp_path / "run.json").read_bytes() != before["run.json"]


def test_what_another_start_wrote_in_the_meantime_stays(tmp_path: Path) -> None:
    """Two starts find an empty folder; the second one gets the lock when the first has ended."""
    config, other = Config(source="net.py"), Config(source="net.py", epochs=3)
    assert record.check(tmp_path, config) is False and record.check(tmp_path, other) is False
    record.write(tmp_path, config, schedule(), ["progc", "train"])
    (tmp_path / "model.safetensors").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds another run: `epochs` was none and is 3 now"):
        record.write(tmp_path, other, schedule(), ["progc", "train"])
    longer = dataclasses.replace(schedule(), total=100)
    with pytest.raises(InputError, match="now holds another schedule"):
        record.write(tmp_path, config, longer, ["progc", "train"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_lock_is_held_from_the_first_file_to_the_last(tmp_path: Path) -> None:
    """Another process asks for it while the record is written, and at a sample in the middle of training."""
    tries: list[str] = []

    def ask() -> None:
        tries.append(
            subprocess.run([sys.executable, "-c", ASK, tmp_path / LOCK], capture_output=True, text=True).stderr
        )

    trainer = running.trainer(tmp_path, data=running.Interrupted(running.samples(64), 20, ask))
    trainer.fit(begin=ask)
    assert len(tries) == 2 and all("BlockingIOError" in text for text in tries)
    ask()
    assert tries[2] == ""


def test_a_start_that_was_killed_before_it_wrote_anything(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert record.check(tmp_path, Config(source="net.py")) is False


def test_a_run_that_failed_before_its_first_step_pins_nothing(tmp_path: Path) -> None:
    config, other = Config(source="net.py"), Config(source="net.py", epochs=3)
    record.write(tmp_path, config, schedule(), ["progc", "train"])
    assert record.check(tmp_path, config) is True and record.check(tmp_path, other) is False
    longer = dataclasses.replace(schedule(), total=100)
    record.write(tmp_path, other, longer, ["progc", "train", "--epochs", "3"])
    assert record.check(tmp_path, other) is True
    assert Schedule.read(tmp_path / "plan.json").total == 100
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 2
    (tmp_path / "step-00000004").mkdir()
    with pytest.raises(InputError, match="holds another run: `epochs` was 3 and is none now"):
        record.check(tmp_path, config)
