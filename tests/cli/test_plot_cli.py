"""`progc plot`: curves of runs, as a picture and as data; files that are none of ours are refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from progc.runs.plotting import read_curves
from progc.train.metrics import Metrics
from tests.command import Command


def written(folder: Path, losses: list[Any], accuracy: bool = True) -> Path:
    """A run of two stages, as the trainer writes it."""
    folder.mkdir()
    log = Metrics(folder)
    for step, loss in enumerate(losses, 1):
        log.write("train", step, {"loss": loss, "lr": 0.1})
        if step == 2:
            log.write("boundary", step, {"stage": 1, "lossless": True, "measured": {"seconds_check": 0.1}})
    values = {"loss": 2.0, **({"top1": 0.5, "ema-0.9/top1": 0.25} if accuracy else {})}
    log.write("validation", len(losses), {**values, "stage": 1})
    log.write("note", 1, {"skipped": "a loss that is not finite"})
    log.close()
    return folder


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_of_two_runs(run: Command, tmp_path: Path, suffix: str, magic: bytes) -> None:
    runs = [written(tmp_path / "full", [3.0, float("nan"), 1.0]), written(tmp_path / "grown", [3.0, 2.0], False)]
    out = tmp_path / f"both{suffix}"
    outcome = run("plot", *runs, "--out", out)
    assert (outcome.code, outcome.out) == (0, f"written: {out}\n"), outcome.err
    assert out.read_bytes().startswith(magic)
    if suffix == ".svg":
        text = out.read_text()
        assert all(f"<!-- {label} -->" in text for label in ("full", "grown", "stage 1", "optimizer steps"))


def test_one_run_has_its_picture_in_its_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", [2.0, 1.0])
    done = subprocess.run([sys.executable, "-m", "progc", "plot", str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"written: {folder / 'plot.png'}\n"), done.stderr
    assert (folder / "plot.png").stat().st_size > 10_000


def test_as_data(run: Command, tmp_path: Path) -> None:
    found = json.loads(run("plot", written(tmp_path / "one", [3.0, float("inf"), 1.0]), "--json").out)
    (one,) = found["runs"]
    assert found["out"] is None and one["run"] == "one" and not (tmp_path / "one" / "plot.png").exists()
    assert one["loss"]["steps"] == [1, 2, 3] and one["loss"]["values"] == [3.0, None, 1.0]
    assert one["boundaries"]["steps"] == [2] and one["boundaries"]["values"] == [1.0]
    assert one["validation"]["top1"]["values"] == [0.5] and one["validation"]["ema-0.9/top1"]["values"] == [0.25]
    assert sorted(one["loss"]["seconds"]) == one["loss"]["seconds"]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", [3.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert read_curves(folder).loss.steps == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]\n{}\n",
        '{"kind": "train", "step": "1", "measured": {"seconds": 1}}\n{}\n',
        '{"kind": "train", "step": 1, "measured": {"seconds": NaN}}\n{}\n',
        '{"kind": "train", "step": -1, "measured": {"seconds": 1}}\n{}\n',
        '{"kind": "train", "step": 1, "measured": 3}\n{}\n',
        "[" * 100_000 + "\n{}\n",
        "\x00\x01\n\n",
        '{"kind": "train", "step": true, "measured": {"seconds": 1}}\n{}\n',
        '{"kind": "train", "step": 1, "measured": {"seconds": false}}\n{}\n',
        '{"kind": "train", "step": 1, "x": "' + "y" * (3 << 20) + '"}\n{}\n',
    ],
)
def test_lines_that_are_none(run: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    outcome = run("plot", tmp_path)
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.count("\n") == 1 and "line 1 is not a line of metrics" in outcome.err


@pytest.mark.parametrize("name", ["_x", "$x^", "a\nb", "\u6f22\U0001f600", "<!-- -->", "\udcff"])
def test_names_are_shown_as_they_stand(run: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    runs = [written(tmp_path / name, [2.0, 1.0]), written(tmp_path / "other" / name, [3.0, 1.0])]
    out = tmp_path / "both.svg"
    outcome = run("plot", *runs, "--out", out)
    assert outcome.code == 0 and outcome.err == "", outcome.err
    if name in ("_x", "$x^"):
        assert all(f"<!-- {name} ({number}) -->" in out.read_text() for number in (1, 2))
    found = json.loads(run("plot", runs[0], "--json").out)["runs"][0]["run"]
    assert found == {"a\nb": "a?b", "\udcff": "?"}.get(name, name)


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1" + "0" * 400, "true", "[1]", "1e100", "5e-324"])
def test_values_of_any_size(run: Command, tmp_path: Path, value: str) -> None:
    """What cannot be drawn is a gap."""
    lines = [
        f'{{"kind": "train", "step": 1, "loss": {value}, "measured": {{"seconds": 1}}}}',
        f'{{"kind": "boundary", "step": 1, "stage": {value}, "measured": {{"seconds": 2}}}}',
        f'{{"kind": "validation", "step": 2, "top1": {value}, "ema-$/top1": {value}, "measured": {{"seconds": 3}}}}',
        '{"kind": "train", "step": 2, "loss": 1.0, "measured": {"seconds": 3}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    outcome = run("plot", tmp_path)
    assert outcome.code == 0 and outcome.err == "", outcome.err
    (one,) = json.loads(run("plot", tmp_path, "--json").out)["runs"]
    assert one["loss"]["values"] == [float(value) if value in ("1e100", "5e-324") else None, 1.0]


def test_bad_input(run: Command, tmp_path: Path) -> None:
    folder = written(tmp_path / "one", [3.0, 2.0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "metrics.jsonl").write_text("")
    for given, said in [
        ([tmp_path / "none"], "is not a folder; give the folder of a run"),
        ([tmp_path / "empty"], "has no metrics.jsonl"),
        ([tmp_path / "early"], "holds no losses yet"),
        ([folder, folder], "plotting 2 runs needs a file for the picture"),
        ([folder, "--out", tmp_path / "a.gif"], "expected a name that ends in .png, .svg, .pdf, got .gif"),
        ([folder, "--out", tmp_path / "none" / "a.png"], "cannot be written"),
    ]:
        outcome = run("plot", *given)
        assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome.err


def test_without_the_library(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = run("plot", written(tmp_path / "one", [3.0, 2.0]))
    assert outcome.code == 2 and "pip install 'progc[plot]'" in outcome.err
