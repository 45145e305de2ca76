"""Metrics as lines, and what is taken back when a run resumes."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from progc.errors import InputError
from progc.train.metrics import Metrics
from progc.train.progress import Meter, Progress


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = Metrics(tmp_path)
    log.write("train", 1, {"loss": math.nan, "lr": 0.1, "measured": {"samples_per_second": 3.0}})
    log.close()
    (line,) = lines(tmp_path)
    assert line["loss"] is None and line["lr"] == 0.1 and line["kind"] == "train" and line["step"] == 1
    assert line["measured"]["samples_per_second"] == 3.0 and line["measured"]["seconds"] >= 0


def test_what_came_after_a_checkpoint_is_taken_back(tmp_path: Path) -> None:
    log = Metrics(tmp_path)
    for step in range(1, 5):
        log.write("train", step, {"loss": 1.0})
        if step in (2, 3):
            log.write("boundary", step, {"stage": step - 1})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "lo')  # torn by a kill
    log = Metrics(tmp_path)
    log.cut(3, 1)  # the checkpoint before the boundary at step 3
    log.write("boundary", 3, {"stage": 2})
    log.close()
    kept = [(line["kind"], line["step"]) for line in lines(tmp_path)]
    assert kept == [("train", 1), ("train", 2), ("boundary", 2), ("train", 3), ("boundary", 3)]


def test_seconds_go_on_where_the_run_was(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "measured": {"seconds": 100.0}}\n')
    log = Metrics(tmp_path)
    log.write("train", 8, {})
    assert 100.0 <= lines(tmp_path)[-1]["measured"]["seconds"] < 130.0
    assert log.seconds >= 100.0
    log.close()


def test_a_rank_that_does_not_write_makes_no_file(tmp_path: Path) -> None:
    log = Metrics(tmp_path, writes=False)
    log.write("train", 1, {})
    log.cut(0, 0)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'progc\[wandb\]'"):
        Metrics(tmp_path, wandb={"project": "x"})


def test_weights_and_biases_gets_a_copy(tmp_path: Path) -> None:
    """The library itself, without a network: the folder of its run holds what was logged."""
    pytest.importorskip("wandb")
    log = Metrics(tmp_path, wandb={"project": "digits", "mode": "offline"})
    log.write("train", 3, {"loss": 0.5, "stage": 1})
    log.close()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (stored,) = folder.glob("*.wandb")
    for _ in range(3000):  # a process of the library's own writes the file, and may not have ended
        if stored.stat().st_size > 500:
            break
        time.sleep(0.1)
    assert stored.stat().st_size > 500


def test_wrong_arguments_of_a_tracker_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(InputError, match=r"trackers\.wandb: .*projekt.*; fix these arguments"):
        Metrics(tmp_path, wandb={"projekt": "x", "mode": "offline"})


def test_a_long_line_and_a_deep_one_are_left_out(tmp_path: Path) -> None:
    good = '{"kind": "train", "step": 1, "measured": {"seconds": 2.0}}\n'
    long = '{"kind": "train", "step": 1, "x": "' + "y" * (5 << 20) + '"}\n'
    (tmp_path / "metrics.jsonl").write_text(good + long + "[" * 100_000 + "\n" + good)
    log = Metrics(tmp_path)
    log.cut(1, 0)
    log.close()
    assert [line["measured"]["seconds"] for line in lines(tmp_path)] == [2.0, 2.0]


def test_the_meter_counts_samples_since_it_was_read() -> None:
    meter = Meter(None, torch.device("cpu"))
    meter.begin()
    for _ in range(3):
        meter.arrived()
        meter.step(16)
    found = meter.read()
    assert found["samples_per_second"] > 0 and 0 <= found["data_wait"] <= 1 and found["mfu"] is None
    assert found["memory"] > 1 << 20
    assert meter.read()["samples_per_second"] == 0


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(sys.stderr) as progress:
        progress.stage(1, 4, 10, 20, 40)
        progress.note("a [remark]")
    assert capsys.readouterr().err == "progc: stage 2/4: steps 10 to 20 of 40\nprogc: a [remark]\n"
    with Progress(sys.stderr, shows=False) as progress:
        progress.note("nothing")
    assert capsys.readouterr().err == ""


def test_time_to_go_counts_what_later_stages_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on: the first may wait for a compilation."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress(sys.stderr) as progress:
        for later, left in ((None, "0:04:40"), (40.0, "0:08:00")):  # 8 steps and 20 or 40 more, of 10 seconds
            progress.stage(1, 4, 10, 20, 40, later)
            now[0] += 100
            progress.step(11, 0.5)
            assert " left" not in capsys.readouterr().err
            now[0] += 10
            progress.step(12, 0.5)
            assert capsys.readouterr().err.endswith(f"step 12/40  loss 0.5000    {left} left\n")


def test_tensorboard_gets_a_copy(tmp_path: Path) -> None:
    """Read back by the library itself."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = Metrics(tmp_path, tensorboard=True)
    for step in (1, 2):
        log.write("train", step, {"loss": 1.0 / step, "skipped": "text is left out"})
    log.close()
    found = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert "train/skipped" not in found.Tags()["scalars"]


def test_tensorboard_forgets_what_a_run_took_back(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for losses in ((1.0, 2.0, 3.0, 4.0), (30.0, 40.0)):  # the second time it resumes from step 2
        log = Metrics(tmp_path, tensorboard=True)
        first = 1 if len(losses) == 4 else 3
        log.cut(first - 1, 0)
        for step, loss in enumerate(losses, first):
            log.write("train", step, {"loss": loss})
        log.close()
    found = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    points = [(point.step, point.value) for point in found.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
