"""`progc plan` and `progc inspect PLAN` on bad input: exit code 2 (1 for NaN), one line, nothing left on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_plan_cli import IMAGE_NET
from tests.command import DATA, NET, Command, files_below
from tests.schedule import made

Refused = Callable[..., str]

PAIRS = (
    NET
    + """
class Wide(Block):
    def __init__(self, dim):
        super().__init__(dim)
        self.fc3 = nn.Linear(dim, dim)

    def forward(self, x):
        return super().forward(x) + torch.tanh(self.fc3(x))

def pairs():
    net = Net(8, 4)
    net.blocks = nn.ModuleList([(Block if place % 2 else Wide)(8) for place in range(4)])
    return net
"""
)
"""Blocks of two kinds in turn: whole pairs only."""


@pytest.fixture
def refused(run: Command, tmp_path: Path) -> Refused:
    """Runs a command that must be refused in one line; returns it."""

    def check(*arguments: str | Path, code: int = 2) -> str:
        before = files_below(tmp_path)
        outcome = run(*arguments)
        assert (outcome.code, outcome.out) == (code, ""), outcome
        assert len(outcome.err.splitlines()) == 1, outcome.err
        assert outcome.err.startswith("progc: error: ") and not outcome.err.rstrip().endswith(".")
        assert files_below(tmp_path) == before
        return outcome.err

    return check


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET + DATA)
    return f"{tmp_path / 'net.py'}:big"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--strategy liner", "unknown strategy `liner`; did you mean linear?"),
        ("--strategy best", "unknown strategy `best`; expected linear, one-shot or zero-shot"),
        ("--mode refrence", "unknown mode `refrence`; did you mean reference?"),
        ("--stages 0", "expected an integer from 1 to 100, or auto for one stage per level"),
        ("--stages -1", "expected an integer from 1 to 100, or auto for one stage per level"),
        ("--stages 1000", "expected an integer from 1 to 100, or auto for one stage per level"),
        ("--stages four", "expected an integer from 1 to 100, or auto for one stage per level"),
        ("--epochs 3 --stages 4", "3 epochs are too few for 4 stages"),
        ("--steps 0", "steps: expected an integer of at least 1, got 0"),
        ("--epochs 3 --steps 9", "`epochs` and `steps` are both given"),
        ("--regularise strong", "regularisation `strong`: expected name=number"),
        ("--regularise drop=.1", "unknown name `drop`; expected drop_path, dropout"),
        ("--regularise drop_path=2", "drop_path: expected a number from 0 to 1, got 2.0"),
        ("--regularise mixup=1,mixup=2", "expected name=number"),
        ("--batch 0", "Invalid value for '--batch'"),
        ("--set ntk --strategy zero-shot", "--set ntk: expected key=value"),
        ("--set a=1 --set a=2", "--set gives `a` twice"),
        ("--set batches=2", "the linear strategy has no setting `batches`; remove it, or choose"),
        ("--data data.py", "--data data.py: samples are for a search and for --measure"),
        ("--to enormous", "unknown target `enormous`"),
        (
            "--out nowhere/plan.json",
            "output nowhere/plan.json cannot be written (No such file or directory in nowhere)",
        ),
    ],
)
def test_wrong_use_is_found_before_any_work(refused: Refused, options: str, message: str) -> None:
    assert message in refused("plan", "torchvision:resnet18", *options.split())


def test_outputs_that_cannot_be_written(refused: Refused, net: str, tmp_path: Path) -> None:
    assert "is a folder; give the name of a file" in refused("plan", net, "--out", tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    assert "cannot be written (Not a directory in" in refused("plan", net, "--out", file / "plan.json")
    if os.path.isdir("/proc/self"):
        assert "cannot be written" in refused("plan", net, "--out", "/proc/self/plan.json")


# --- spaces ---------------------------------------------------------------------------------------------------------


def test_an_empty_space(refused: Refused, net: str) -> None:
    assert "the growth space is empty" in refused("plan", net, "--depths", "none")
    assert "nothing varies" in refused("plan", f"{net.removesuffix('big')}small", "--stages", "2")  # one block only


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--depths", "0"), ("--depths", "9"), ("--depths", "0:1:0"), ("--depths", "0.5:1:0"), ("--depths", "a"),
        ("--depths", ""), ("--depths", "no_such_chain:2,4"), ("--widths", "3:9"), ("--widths", "no_such_axis:2"),
        ("--resolutions", "8,16"), ("--unfreeze", "interleave"), ("--unfreeze", "interleave:0"),
        ("--unfreeze", "all:4"), ("--unfreeze", "intreleave:4"),
    ],
)  # fmt: skip
def test_levels_that_the_network_cannot_have(refused: Refused, net: str, option: str, text: str) -> None:
    message = refused("plan", net, "--stages", "2", option, text)
    assert option[2:] in message


def test_a_resolution_that_the_network_cannot_have(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "image.py"
    path.write_text(IMAGE_NET)
    message = refused("plan", path, "--stages", "2", "--resolutions", "10,16")
    assert "10" in message and "nearest" in message and "8 and 12" in message
    assert "resolution" in refused("plan", path, "--stages", "2", "--resolutions", "0")


def test_a_depth_between_periods(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "pairs.py"
    path.write_text(PAIRS)
    message = refused("plan", f"{path}:pairs", "--stages", "2", "--depths", "3")
    assert "3" in message and "blocks" in message


# --- samples and loss -----------------------------------------------------------------------------------------------


def test_a_search_without_samples(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "bare.py"
    path.write_text(NET)
    message = refused("plan", f"{path}:big", "--strategy", "zero-shot")
    assert "strategy zero-shot needs samples and a loss; write def datasets(): return train, validation" in message
    assert f"in {path}, or give --data digits" in message
    assert "--measure needs samples and a loss" in refused("plan", f"{path}:big", "--measure")
    message = refused("plan", "torchvision:resnet18", "--strategy", "one-shot")
    assert "one-shot needs samples and a loss; give --data digits" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no datasets(); write def datasets()"),
        ("def datasets(): raise KeyError('lost')", "KeyError when the file makes its datasets: 'lost'"),
        ("def datasets(): return None", "datasets() returned None"),
        ("def datasets(): return [1.0]", "has no loss(outputs, batch)"),
        ("import no_such_thing", "ModuleNotFoundError when the file is imported"),
    ],
)
def test_a_data_file_that_gives_none(refused: Refused, net: str, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.py"
    path.write_text(text)
    found = refused("plan", net, "--strategy", "zero-shot", "--data", path)
    assert message in found and str(path) in found
    assert "no such file" in refused("plan", net, "--strategy", "zero-shot", "--data", tmp_path / "none.py")


@pytest.mark.parametrize("strategy", ["zero-shot", "one-shot"])
def test_samples_that_do_not_suffice(refused: Refused, net: str, strategy: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET + DATA.replace("96", "8"))
    message = refused("plan", net, "--strategy", strategy, "--stages", "2", "--batch", "16", "--out", tmp_path / "plan")
    assert "8 samples" in message and "16" in message


@pytest.mark.parametrize("strategy", ["zero-shot", "one-shot"])
def test_a_loss_that_is_nan(refused: Refused, net: str, strategy: str, tmp_path: Path) -> None:
    path, out = tmp_path / "net.py", tmp_path / "plan.json"
    path.write_text(NET + DATA + "\ndef loss(outputs, batch): return outputs.mean() * float('nan')\n")
    arguments = ("--strategy", strategy, "--stages", "2", "--batch", "16", "--out", out)
    assert "nan" in refused("plan", net, *arguments, code=1).lower()


@pytest.mark.parametrize("strategy", ["zero-shot", "one-shot"])
def test_a_loss_that_fails_in_the_search(refused: Refused, net: str, strategy: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(NET + DATA + "\ndef loss(outputs, batch): return outputs.sum(1)\n")
    arguments = ("--strategy", strategy, "--stages", "2", "--batch", "16")
    assert "loss(outputs, batch) returned a tensor [" in refused("plan", net, *arguments)


def test_an_unknown_setting_of_a_search(refused: Refused, net: str) -> None:
    for strategy in ("zero-shot", "one-shot"):
        assert "bathces" in refused("plan", net, "--strategy", strategy, "--batch", "16", "--set", "bathces=2")


# --- plans ----------------------------------------------------------------------------------------------------------


def test_plans_that_are_none(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert "cannot be read as a plan" in refused("inspect", path)
    for content in ("", "{", "not json", '"text"', "[1]", "{}", '{"format": "other"}', "null"):
        path.write_text(content)
        assert str(path) in refused("inspect", path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a plan" in refused("inspect", path)
    folder = tmp_path / "folder.json"
    folder.mkdir()
    assert "is a folder without report.json" in refused("inspect", folder)


def test_a_plan_of_a_newer_version(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made.grown().write(path)
    data = json.loads(path.read_text())
    for version in (2, 99, "1", None, 0):
        path.write_text(json.dumps({**data, "version": version}))
        assert f"expected a version of at most 1, got {version!r}" in refused("inspect", path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stages", []), ("stages", None), ("stages", "four"), ("stages", [1]), ("strategy", "best\n"), ("mode", 3),
        ("unit", "years"), ("seed", "x"), ("total", -1), ("total", "long"), ("model", None), ("model", {}),
        ("space", 3), ("space", {"depths": 1}), ("decisions", [1]), ("decisions", [{"stage": 0, "winner": 5}]),
        ("settings", 3), ("surprise", 1),
    ],
)  # fmt: skip
def test_a_damaged_plan(refused: Refused, tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "plan.json"
    made.grown().write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert str(path) in refused("inspect", path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share", 0.5), ("share", 0), ("share", "x"), ("index", 7), ("point", {"depth": {}}), ("point", 3),
        ("point", {"resolution": [1]}), ("point", {"unfreeze": "interleave:5/4"}), ("cost", {"batch": 1}),
        ("regularisation", {"drop_path": 2}), ("sid", -1), ("more", 1),
    ],
)  # fmt: skip
def test_a_damaged_stage(refused: Refused, tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "plan.json"
    made.grown().write(path)
    data = json.loads(path.read_text())
    data["stages"][1][key] = value
    path.write_text(json.dumps(data))
    assert str(path) in refused("inspect", path)


def test_a_cut_off_plan_and_debug(run: Command, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made.searched().write(path)
    path.write_text(path.read_text()[:-200])
    plain, debug = run("inspect", path), run("inspect", path, "--debug")
    assert (plain.code, debug.code) == (2, 2) and "Traceback" not in plain.err and "Traceback" in debug.err


def test_options_that_do_not_go_together(refused: Refused, net: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made.grown().write(path)
    assert "is a plan and holds no graph" in refused("inspect", path, "--axes")
    assert "there is no stage 4; the plan has stages 0 to 3" in refused("inspect", path, "--stage", "4")
    assert "there is no stage -1" in refused("inspect", path, "--stage", "-1", "--json")
    assert "--stage 1 needs a plan or a run, got " in refused("inspect", net, "--stage", "1")
    assert "--stage 1 needs a plan or a run, got " in refused("inspect", tmp_path, "--stage", "1")
