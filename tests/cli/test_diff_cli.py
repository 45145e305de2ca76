"""`progc diff`: folders of grow and apply, the user's file, wrong use, and a real process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import progc
from progc.models.opening import open_source
from tests.command import NET, Command, in_process, in_subprocess


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text('print("hello from the file")\n' + NET)
    return in_process(capsys)


def done(run: Command, *arguments: str | Path) -> str:
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def compared(run: Command, *arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(run, "diff", *arguments, "--json"))
    return found


def groups(found: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {group["pattern"]: group for group in found["tensors"]["groups"][kind]}


def test_before_and_after_a_pipeline(run: Command) -> None:
    found = compared(run, "net.py:Net", "--pipeline", "grow-depth{to=4}, grow-width{width=*2}")
    assert found["before"]["history"] == [] and not found["same"]
    assert found["after"]["history"] == ["grow-depth{to=4}", "grow-width{width=*2}"]
    assert found["after"]["name"] == "net.py:Net after grow-depth{to=4},grow-width{width=*2}"
    assert (found["before"]["params"], found["before"]["trainable"]) == (667, 667)
    assert found["chains"] == [{"pattern": "blocks", "count": 1, "before": 2, "after": 4}]
    assert groups(found, "reshaped")["blocks.{0-1}.fc1.weight"] == {
        "pattern": "blocks.{0-1}.fc1.weight",
        "tensors": 2,
        "before": {"dtype": "f32", "shape": [16, 8]},
        "after": {"dtype": "f32", "shape": [32, 16]},
    }
    assert groups(found, "added")["blocks.{2-3}.fc1.weight"]["tensors"] == 2
    assert found["operations"]["eval"]["gelu"] == found["operations"]["train"]["gelu"] == [2, 4]
    assert found["tensors"]["reshaped"] + found["tensors"]["equal"] == 16


def test_the_second_model_goes_through_the_pipeline(run: Command) -> None:
    """The small one, grown, has the sizes of the big one."""
    pipeline = "grow-depth{to=4},grow-width{width=16 mlp=32}"
    found = compared(run, "net.py:big", "net.py:Net", "--pipeline", pipeline)
    assert not found["tensors"]["reshaped"] and not found["tensors"]["added"] and found["tensors"]["changed"]
    assert found["chains"] == found["axes"] == [] and found["before"]["params"] == found["after"]["params"]


def test_folders_of_grow_and_of_apply(run: Command, tmp_path: Path) -> None:
    done(run, "grow", "net.py:Net", "--to", "width*2", "--out", "grown")
    done(run, "apply", "net.py:Net", "--pipeline", "grow-width{width=*2}", "--out", "applied")
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--out", "deeper")
    Path("net.py").write_text("raise RuntimeError('imported')\n")
    report = json.loads(Path("grown/report.json").read_text())["program"]
    assert report["chains"] == {"blocks": 2} and report["inputs"] == [{"name": "x", "dtype": "f32", "shape": [2, 5]}]
    same = compared(run, "grown", "grown")
    assert same["same"] and same["tensors"]["equal"] == 16 and same["unknown"] == {}
    found = compared(run, "grown", "deeper")
    assert found["chains"] == [{"pattern": "blocks", "count": 1, "before": 2, "after": 3}]
    assert {"pattern": "embed", "count": 1, "before": 16, "after": 8} in found["axes"]
    assert groups(found, "added")["blocks.2.fc1.weight"]["after"] == {"dtype": "f32", "shape": [16, 8]}
    assert found["after"]["history"] == ["grow-depth{to=3}"] and found["operations"]["eval"]["gelu"] == [2, 3]
    assert compared(run, "grown", "applied")["same"], "two ways to one network"


def test_a_model_and_a_folder(run: Command) -> None:
    save_file(open_source("net.py").build(7).state_dict(), "w.safetensors")
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--weights", "w.safetensors", "--out", "out")
    found = compared(run, "net.py:Net", "out", "--weights", "w.safetensors")
    assert found["tensors"]["changed"] == 0 and found["tensors"]["equal"] == 16
    assert compared(run, "net.py:Net", "out")["tensors"]["changed"] > 0, "other weights"
    text = done(run, "diff", "net.py:Net", "out", "--weights", "w.safetensors")
    assert re.search(r"^parameters +667 -> 963 \(\+296\)$", text, re.MULTILINE), text


def test_tensors_that_were_changed_by_hand(run: Command) -> None:
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--out", "a")
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--out", "b")
    tensors = load_file("b/model.safetensors")
    for block in range(3):
        tensors[f"blocks.{block}.fc1.bias"] += 0.5
    tensors["head.bias"][1] = float("nan")
    tensors["extra"] = torch.zeros(2, 3)
    tensors["head.weight"] = tensors["head.weight"].double()
    del tensors["embed.bias"]
    save_file(tensors, "b/model.safetensors")
    found = compared(run, "a", "b")
    assert {kind: found["tensors"][kind] for kind in ("added", "removed", "reshaped", "changed", "equal")} == {
        "added": 1, "removed": 1, "reshaped": 1, "changed": 4, "equal": 16,
    }  # fmt: skip
    assert groups(found, "changed")["blocks.{0-2}.fc1.bias"]["max_abs_diff"] == pytest.approx(0.5)
    assert groups(found, "changed")["head.bias"]["max_abs_diff"] is None
    assert list(groups(found, "added")) == ["extra"] and list(groups(found, "removed")) == ["embed.bias"]
    text = done(run, "diff", "a", "b")
    assert "tensors: 1 added, 1 removed, 1 reshaped, 4 with other values, 16 equal bit by bit" in text
    assert re.search(r"^    blocks\.\{0-2\}\.fc1\.bias  \[16\]  5\.0e-01$", text, re.MULTILINE), text
    assert "head.weight  f32[3, 8] -> f64[3, 8]" in text


def test_a_folder_of_an_older_version_says_less(run: Command) -> None:
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--out", "out")
    report = json.loads(Path("out/report.json").read_text())
    del report["program"]
    Path("out/report.json").write_text(json.dumps(report))
    found = compared(run, "net.py:Net", "out")
    assert found["chains"] is found["axes"] is found["operations"] is found["trainable"]["frozen"] is None
    assert found["after"]["params"] == 963 and found["after"]["history"] == ["grow-depth{to=3}"]
    assert "chains" in found["unknown"]["out"]
    assert re.search(r"^unknown for out: .*chains, axes", done(run, "diff", "net.py:Net", "out"), re.MULTILINE)
    assert done(run, "diff", "out", "out").endswith("\n\nno difference in what is known of both\n")


def test_the_graphs_line_by_line(run: Command) -> None:
    text = done(run, "diff", "net.py:Net", "--pipeline", "grow-width{width=*2}", "--graph")
    assert "\n--- net.py:Net, train graph\n+++ net.py:Net after grow-width{width=*2}, train graph\n@@ " in text
    assert re.search(r"^-%linear: f32\[2, 8\] = linear", text, re.MULTILINE)
    assert re.search(r"^\+%linear: f32\[2, 16\] = linear", text, re.MULTILINE)
    assert "as many operations" not in text


WRONG = [
    (("net.py:Net",), "expected two models or folders to compare, got one; give a second, or --pipeline"),
    (("net.py:Net", "net.py:Gone"), "net.py"),
    (("net.py:Net", "nowhere"), "`nowhere` is not a source"),
    (("net.py:Net", "empty"), "empty is a folder without report.json; expected one written by --out, or a model"),
    (("out", "net.py:Net", "--weights", "w"), "--weights needs a model, but out is a folder; give the model itself"),
    (
        ("net.py:Net", "out", "--pipeline", "grow-depth"),
        "--pipeline needs a model, but out is a folder; give the model",
    ),
    (("out", "--pipeline", "grow-depth"), "--pipeline needs a model, but out is a folder"),
    (
        ("net.py:Net", "out", "--graph"),
        "--graph needs a model, but out is an output folder without a graph; give the model",
    ),
    (("net.py:Net", "--pipeline", "grow-dept"), "there is no pass `grow-dept`; did you mean grow-depth"),
    (("net.py:Net", "--pipeline", "grow-depth{to=1}"), "grow-depth"),
    (("cut", "out"), "cut/model.safetensors is not a readable safetensors file"),
    (("bare", "out"), "bare has no model.safetensors; expected a folder written by --out"),
    (("mad", "out"), "`program` in a report cannot be read"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_use_is_one_line_and_exit_code_2(run: Command, arguments: tuple[str, ...], message: str) -> None:
    report = {"pipeline": "", "params_after": 3}
    for name in ("out", "empty", "cut", "bare", "mad"):
        Path(name).mkdir()
        if name != "empty":
            Path(name, "report.json").write_text(json.dumps({**report, **({"program": [1]} if name == "mad" else {})}))
        if name in ("out", "cut", "mad"):
            save_file({"a": torch.zeros(3)}, Path(name, "model.safetensors"))
    whole = Path("cut/model.safetensors").read_bytes()
    Path("cut/model.safetensors").write_bytes(whole[:-2])
    outcome = run("diff", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    lines = [line for line in outcome.err.splitlines() if line.startswith("progc: error: ")]
    assert len(lines) == 1 and message in lines[0], outcome.err


def test_a_real_process(run: Command, tmp_path: Path) -> None:
    outcome = in_subprocess(["diff", "net.py:Net", "net.py:Net", "--json"], cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["same"] is True
    assert "hello from the file" in outcome.err


def test_comparing_folders_runs_no_code_of_the_user(run: Command, tmp_path: Path) -> None:
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--out", "out")
    code = (
        "import sys\nfrom progc.cli import main\nassert main(['diff', 'out', 'out']) == 0\n"
        "assert not [name for name in sys.modules if name.startswith(('_progc_user', 'progc.capturing', 'timm'))]\n"
    )
    Path("net.py").write_text("raise RuntimeError('imported')\n")
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("no difference\n")


def test_python_takes_folders_too(run: Command) -> None:
    done(run, "apply", "net.py:Net", "--pipeline", "grow-depth{to=3}", "--out", "out")
    model = open_source("net.py").build()
    program = progc.capture(model, (torch.randn(2, 5),))
    found = progc.diff(program, "out")
    assert found.count("added") == 6 and found.equal == 16 and found.names[1] == "out"
    assert progc.diff(Path("out"), progc.apply(program, "grow-depth{to=3}")).same
