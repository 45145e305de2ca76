"""`progc train`: how it fails, and how a run is forked from a checkpoint of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from progc.schedule import Schedule
from tests.cli.test_train_cli import FAST
from tests.command import DATA, NET, Command, in_subprocess


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_run_is_forked_from_a_checkpoint(run: Command, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    run_options = ("--epochs", "4", "--stages", "2", "--out", "run")
    kept = ("--set", "train.save_every=4", "--set", "train.keep=none", "--set", "train.log_every=1")
    assert run("train", "net.py:big", *run_options, *FAST, *kept).code == 0
    whole = net.parent / "run"

    # With the same settings it is the same run, and it has the metrics from the beginning on.
    outcome = run("train", "--from", "run:8", "--out", "same")
    assert outcome.code == 0, outcome.err
    assert same(weights(net.parent / "same"), weights(whole))
    lines = [json.loads(line) for line in (net.parent / "same" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 25))

    # Another rate and another length: the past stays, the present follows, and both runs record it.
    changes = ("--epochs", "6", "--set", "train.lr=1e-4")
    outcome = run("train", "--from", "run:16", "--out", "slow", *changes, "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["step"] == 36, outcome.err
    assert not same(weights(net.parent / "slow"), weights(whole))
    schedule = Schedule.read(net.parent / "slow" / "plan.json")
    assert (schedule.starts(), schedule.total) == ([0, 2], 6)
    lines = [json.loads(line) for line in (net.parent / "slow" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if line["kind"] == "train"}
    assert rates[16] > 1e-4 * 2 and max(rate for step, rate in rates.items() if step > 16) <= 1e-4
    own, theirs = (json.loads((net.parent / name / "run.json").read_text()) for name in ("slow", "run"))
    assert own["from"] == {
        "run": str(whole), "step": 16, "changed": {"epochs": [4, 6], "train.lr": [0.001, 0.0001]},
    }  # fmt: skip
    assert [Path(fork["run"]).name for fork in theirs["forks"]] == ["same", "slow"]

    # The same command resumes; one that was killed before its first checkpoint begins there again.
    assert "resuming run" in run("train", "--from", "run:16", "--out", "slow", *changes).err
    slow = net.parent / "slow"
    end = weights(slow)
    for path in (slow / "model.safetensors", *slow.glob("step-*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run("train", "slow/config.json").code == 0 and same(weights(slow), end)


def test_what_a_run_cannot_go_on_with(run: Command, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    options = ("--steps", "4", "--stages", "2", "--out", "run", *FAST)
    assert run("train", "net.py:big", *options).code == 0
    for more, message in (
        (("--out", "new", "--batch", "8"), "`train.batch` was 16 and would be 8, but the checkpoint depends on it"),
        (("--out", "new", "--epochs", "4"), "the length of the run was given in steps, got epochs"),
        (("--out", "new", "--steps", "4"), None),
        (("--out", "newer", "--steps", "3"), "3 steps: the checkpoint is already at 4; give a larger number"),
        (("--out", "run"), "--from run needs another folder for the new run; add --out NEW"),
        (("--smoke", "2"), "--from and --smoke are both given"),
        (("--out", "new", "net.py"), "give a config file or a source, or --from RUN in its place"),
    ):
        outcome = run("train", "--from", "run", *more)
        assert (outcome.code, message is None or message in outcome.err) == (0 if message is None else 2, True), (
            more, outcome.err,
        )  # fmt: skip
    outcome = run("train", "--from", "run:3", "--out", "newer")
    assert outcome.code == 2 and "there is no such checkpoint; run keeps those of the steps 4" in outcome.err
    outcome = run("train", "net.py:big", *options, "--set", "train.lr=0.5")
    assert outcome.code == 2 and "or continue from its checkpoint with --from run --out NEW" in outcome.err
    assert run("train").code == 2


SWALLOWED = """
calls = []

def loss(outputs, batch):
    calls.append(0)
    if len(calls) == 17:
        raise ValueError("no loss here")
    return torch.nn.functional.cross_entropy(outputs, batch[1])
"""


def test_an_error_of_the_loss_ends_the_run_with_its_own_code(run: Command, net: Path) -> None:
    net.write_text(NET + DATA + SWALLOWED)
    command = ("train", f"{net}:big", "--epochs", "4", "--stages", "2", "--out", net.parent / "run", *FAST)
    outcome = run(*command, "--set", "train.save_every=4")
    line = (NET + DATA + SWALLOWED).splitlines().index('        raise ValueError("no loss here")') + 1
    message = f"progc: error: {net}:{line}: ValueError when the file computes its loss: no loss here"
    assert outcome.code == 3 and outcome.err.splitlines()[-1] == message, outcome.err
    again = run(*command)
    assert again.code == 0 and "resumes from step-" in again.err, again.err


FAILING = """
class Rows:
    def __len__(self): return 96
    def __getitem__(self, index):
        if index == 50:
            raise KeyError("no column `label`")
        return torch.zeros(5), 0

def datasets():
    return Rows()
"""


@pytest.mark.slow  # a process of its own; tests/data/test_workers.py has the smaller sibling
def test_a_process_with_workers_ends_with_one_line(net: Path) -> None:
    net.write_text(NET + FAILING)
    arguments = ("train", "net.py:big", "--steps", "12", "--stages", "1", "--out", "run", *FAST)
    outcome = in_subprocess([*arguments, "--set", "train.workers=2"], cwd=net.parent)
    line = (NET + FAILING).splitlines().index('            raise KeyError("no column `label`")') + 1
    last = outcome.err.splitlines()[-1]
    assert outcome.code in (2, 3) and "Traceback" not in outcome.err, outcome.err
    assert last == f"progc: error: net.py:{line}: KeyError when the file returns sample 50: 'no column `label`'"
