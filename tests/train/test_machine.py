"""How the device computes in a run, and traces of some of its steps."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from progc.errors import InputError
from progc.train.machine import Profile, device_settings
from progc.train.settings import Settings, profiled
from tests.train.running import BATCH, Interrupted, lines, samples, train

CPU = torch.device("cpu")


def state() -> tuple[Any, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), None),
        (Settings(tf32=True), ("high", True, False)),
        (Settings(tf32=False, cudnn_benchmark=True), ("highest", False, True)),
    ],
)
def test_settings_of_the_device_hold_during_a_run(settings: Settings, expected: tuple[Any, ...] | None) -> None:
    """And torch's own come back, also where the run fails."""
    before = state()
    with pytest.raises(KeyboardInterrupt), device_settings(settings):
        assert state() == (before if expected is None else expected)
        raise KeyboardInterrupt
    assert state() == before


def test_a_run_sets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    data = Interrupted(samples(72), BATCH, lambda: (seen.append(state()), os.kill(os.getpid(), signal.SIGTERM)))
    before = state()
    train(tmp_path, data, tf32=True, cudnn_benchmark=True)
    assert seen == [("high", True, True)] and state() == before


@pytest.mark.parametrize("text", ["10", "10-13", "13:10", "10:10", "-1:3", "a:b", "1:2:3", "", "1.5:3", "١:٣"])
def test_a_text_that_is_no_range_of_steps_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^profile: expected START:STOP with START below STOP, such as 10:13, got '"):
        Settings(profile=text)


def test_a_range_of_steps() -> None:
    assert profiled("10:13") == (10, 13) and profiled(" 0 : 1 ") == (0, 1)


def steps_in(path: Path) -> list[str]:
    """The steps that a trace names."""
    events = json.loads(path.read_text())["traceEvents"]
    return sorted({event["name"] for event in events if str(event.get("name", "")).startswith("step ")})


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And the boundary between them; the metrics are those of a run without."""
    assert train(tmp_path / "run", profile="2:4").finished
    (path,) = (tmp_path / "run").glob("trace*")
    assert path.name == "trace-2-4-rank0.json" and steps_in(path) == ["step 2", "step 3"]
    assert f"progc: trace written: {path}\n" in capfd.readouterr().err
    train(tmp_path / "plain")
    assert lines(tmp_path / "run") == lines(tmp_path / "plain")


def test_a_resumed_run_traces_what_is_left(tmp_path: Path) -> None:
    """A run that is stopped inside the trace writes what it has; one resumed after its end writes nothing."""
    data = Interrupted(samples(72), 4 * BATCH, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(tmp_path, data, profile="3:6").step == 4
    path = tmp_path / "trace-3-6-rank0.json"
    assert steps_in(path) == ["step 3"]
    data = Interrupted(samples(72), 4 * BATCH, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(tmp_path, data, profile="3:6").step > 6
    assert steps_in(path) == ["step 4", "step 5"]
    path.unlink()
    assert train(tmp_path, profile="3:6").finished and not path.exists()


def test_each_rank_writes_its_own(tmp_path: Path) -> None:
    """On another machine the folder may not exist."""
    told: list[str] = []
    with Profile(tmp_path / "run", Settings(profile="0:1"), 3, CPU, told.append) as profile:
        profile.begin(0)
        torch.ones(2).sum()
        profile.end(1)
        profile.begin(1)
        profile.end(2)
    (path,) = (tmp_path / "run").iterdir()
    assert path.name == "trace-0-1-rank3.json" and len(told) == 1


def test_a_run_that_fails_writes_no_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Profile(tmp_path, Settings(profile="0:9"), 0, CPU, print) as profile:
        profile.begin(0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    profile = Profile(tmp_path / "file" / "run", Settings(profile="0:1"), 0, CPU, print)
    profile.begin(0)
    with pytest.raises(InputError, match="cannot be written: .*; free space, or leave out train.profile"):
        profile.end(1)
