"""Runs from the command line to the end, with settings of single stages and with a strategy of another package.

Each is also stopped in the middle by a signal, and resumed by the same command.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import progc.search.strategies
from progc.pipeline.registry import NamedClasses
from tests.command import NET, Command, in_subprocess

DATA = """
import os, signal

class Samples:
    def __init__(self):
        self.x = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
        self.asked = 0

    def __len__(self):
        return 48

    def __getitem__(self, index):
        self.asked += 1
        if str(self.asked) == os.environ.get("STOP_AT"):
            os.kill(os.getpid(), signal.SIGTERM)
        return self.x[index], self.x[index, :3].argmax()

def datasets():
    samples = Samples()
    return samples, (samples.x[:16], samples.x[:16, :3].argmax(1))
"""
STRATEGY = '''
import dataclasses
from typing import ClassVar

import progc
from progc.schedule import Index

@dataclasses.dataclass(frozen=True)
class Jump(progc.Strategy):
    """Trains the network of one level, and then the full one."""

    name: ClassVar[str] = "jump"
    level: int = 0

    def stages(self, program, space, options, task):
        return [Index(depth=self.level)] * (options.num_stages - 1) + [space.last], []
'''
STOP_AT = 140
"""In the third step of stage 1: one sample is looked at, 96 train in stage 0, and 8 are compared at the boundary."""
OPTIONS = [
    "--stages", "3", "--epochs", "6", "--batch", "16", "--lr", "0.004", "--set", "train.compile=eager",
    "--set", "train.device=cpu", "--set", "train.ema=[0.9]", "--set", "train.log_every=1", "--set", "train.warmup=0.0",
    "--set", "train.lr_schedule=constant", "--set", "train.validate_every=4",
]  # fmt: skip
CASES = {
    "stage_lr": ["--set", "train.stage_lr=[1.0, 0.5, 0.25]"],
    "stage_batch": ["--set", "train.stage_batch=[16, 12, 8]"],
    "strategy": ["--strategy", "jump", "--set", "plan.settings.level=1"],
}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET + DATA)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package, as pip leaves it, that has a strategy."""
    site = tmp_path / "site"
    info = site / "jumping-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "jumping.py").write_text(STRATEGY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jumping\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[progc.strategies]\njump = jumping:Jump\n")
    return site


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package)
    own = progc.search.strategies._CLASSES  # it remembers the packages that it has found
    monkeypatch.setattr(progc.search.strategies, "_CLASSES", NamedClasses(own.kind, own.kinds, own.own, own.group))
    monkeypatch.delitem(sys.modules, "jumping", raising=False)


def command(net: Path, out: Path, *more: str) -> list[str]:
    return ["train", f"{net}:big", *OPTIONS, *more, "--out", str(out)]


def lines(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Metrics without what was measured."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{key: value for key, value in line.items() if key != "measured"} for line in found]
    return [line for line in kept if kind in (None, line["kind"])]


def check_same(one: Path, two: Path) -> None:
    """Weights, averages, metrics and plan."""
    for name in ("model.safetensors", "model-ema-0.9.safetensors"):
        ours, theirs = load_file(one / name), load_file(two / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert lines(one) == lines(two)
    assert (one / "plan.json").read_text() == (two / "plan.json").read_text()


def stopped_and_resumed(
    run: Command, net: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, *more: str | Path
) -> None:
    other = whole.with_name("stopped")
    options = [str(text) for text in more]
    with monkeypatch.context() as patch:
        patch.setenv("STOP_AT", str(STOP_AT))
        outcome = run(*command(net, other, *options))
    assert outcome.code == 143, outcome.err
    assert "run the same command again to resume: step 9," in outcome.out  # of 6 in stage 0, and 6 or 8 in stage 1
    outcome = run(*command(net, other, *options))
    assert outcome.code == 0, outcome.err
    assert "resumes from step-00000009, stage 1" in outcome.err
    check_same(whole, other)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("installed")
def test_a_run_to_the_end_and_one_that_is_resumed(
    run: Command, net: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = net.parent / "whole"
    outcome = run(*command(net, whole, *CASES[name]))
    assert outcome.code == 0 and outcome.out.startswith("finished: step "), outcome.err
    CHECKS[name](run, whole, outcome.err)
    stopped_and_resumed(run, net, whole, monkeypatch, *CASES[name])


def check_rates(run: Command, whole: Path, told: str) -> None:
    rates = [line["lr"] for line in lines(whole, "train")]
    assert rates == [0.004] * 6 + [0.002] * 6 + [0.001] * 6


def check_batches(run: Command, whole: Path, told: str) -> None:
    found = lines(whole, "train")
    assert [line["batch"] for line in found] == [16] * 6 + [12] * 8 + [8] * 12
    assert [line["epoch"] for line in found] == [0] * 3 + [1] * 3 + [2] * 4 + [3] * 4 + [4] * 6 + [5] * 6
    assert {line["lr"] for line in found} == {0.004}
    assert "the stages have batches of 16, 12, 8; the learning rate does not change with them" in told
    plan = json.loads((whole / "plan.json").read_text())
    assert [(stage["batch"], stage["cost"]["batch"]) for stage in plan["stages"]] == [(16, 16), (12, 12), (8, 8)]
    assert json.loads((whole / "config.json").read_text())["train"]["stage_batch"] == [16, 12, 8]
    shown = run("inspect", whole)
    rows = [row.split() for row in shown.out.splitlines() if re.match(r" +[012] +33 %", row)]
    assert [row[4] for row in rows] == ["16", "12", "8"], shown.out
    exported = run("export", whole)
    assert exported.code == 0, exported.err


def check_stages(run: Command, whole: Path, told: str) -> None:
    plan = json.loads((whole / "plan.json").read_text())
    assert (plan["strategy"], plan["settings"]["level"]) == ("jump", 1)
    assert [stage["point"]["depths"]["blocks"] for stage in plan["stages"]] == [3, 3, 4]
    assert [line["step"] for line in lines(whole, "boundary")] == [6, 12]


CHECKS = {"stage_lr": check_rates, "stage_batch": check_batches, "strategy": check_stages}


def test_a_plan_with_batches_is_costed_and_trained_with_them(run: Command, net: Path) -> None:
    plan, given = str(net.parent / "plan.json"), f"{net}:big"
    made = run("plan", given, "--stages", "3", "--epochs", "6", "--stage-batch", "16,12,8", "--out", plan, "--json")
    assert made.code == 0, made.err
    stages = json.loads(made.out)["stages"]
    assert [(stage["batch"], stage["cost"]["batch"]) for stage in stages] == [(16, 16), (12, 12), (8, 8)]
    dry = ["train", given, "--plan", plan, "--dry-run", "--set", "train.device=cpu"]
    found = json.loads(run(*dry, "--json").out)
    assert [(s["begin"], s["steps"], s["batch"], s["steps_per_epoch"]) for s in found["stages"]] == [
        (0, 6, 16, 3), (6, 8, 12, 4), (14, 12, 8, 6),
    ]  # fmt: skip
    assert found["steps"] == 26 and found["steps_per_epoch"] is None and found["unit"] == "epochs"
    assert [s["flops"] for s in found["stages"]] == [
        s["cost"]["forward_flops"] + s["cost"]["backward_flops"] for s in stages
    ]
    text = run(*dry)
    assert "6 epochs, 26 steps; 48 samples, batches of 16, 12, 8" in text.out
    assert "as the plan says, so train.batch (64) has no effect; the learning rate does not change" in text.err
    other = json.loads(run(*dry, "--stage-batch", "24,24,24", "--json").out)
    assert [s["steps"] for s in other["stages"]] == [4, 4, 4] and other["steps_per_epoch"] == 2


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (
            "plan",
            ["--stage-batch", "16,8"],
            "plan: stage_batch: expected one batch size for each of the 3 stages, got 2",
        ),
        ("plan", ["--stage-batch", "16,x,8"], "--stage-batch 16,x,8: expected an integer of at least 1 for each stage"),
        (
            "train",
            ["--stage-batch", "16,8"],
            "stage_batch: expected one batch size for each of the 3 stages, got 2; give",
        ),
        ("train", ["--stage-batch", "16,8,64"], "a batch of 64 samples for stage 2, got 48; use a smaller batch"),
        (
            "train",
            ["--set", "train.stage_batch=[16,0,8]"],
            "`train.stage_batch`: expected integers of at least 1, got 0",
        ),
        ("train", ["--set", "train.stage_batch=16"], "`train.stage_batch`: expected a list of integers, got 16"),
        (
            "train",
            ["--stage-batch", "16,8,8", "--set", "train.accumulate=9"],
            "expected at most the batch size 8, got 9",
        ),
    ],
)
def test_batches_that_cannot_be(run: Command, net: Path, command: str, more: list[str], message: str) -> None:
    out = ["--dry-run"] if command == "train" else []
    outcome = run(command, f"{net}:big", "--stages", "3", "--epochs", "6", *more, *out)
    assert outcome.code == 2 and message in outcome.err.splitlines()[-1], outcome.err


@pytest.mark.slow  # the case above finds the same package from this process
def test_a_strategy_of_an_installed_package_trains_in_a_process_of_its_own(net: Path, package: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONPATH": f"{package}:{root}"}

    def train(out: str, **more: str) -> Any:
        options = command(net, net.parent / out, *CASES["strategy"])
        return in_subprocess(options, cwd=net.parent, environment={**environment, **more})

    whole = train("whole")
    assert whole.code == 0, whole.err
    stopped = train("stopped", STOP_AT=str(STOP_AT))
    assert stopped.code == 143, stopped.err
    resumed = train("stopped")
    assert resumed.code == 0, resumed.err
    check_same(net.parent / "whole", net.parent / "stopped")
