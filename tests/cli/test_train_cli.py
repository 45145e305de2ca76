"""`progc train`: what it opens, writes and refuses, its exit codes, and short real runs."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from progc.runs import record
from progc.runs.config_file import configured
from progc.schedule import Schedule
from progc.train.parallel import Single
from progc.train.progress import Meter
from progc.train.run_folder import Result, held
from progc.transforms.dropping import find_drops
from tests.command import DATA, NET, Command, files_below

FAST_SETS = ("train.compile=eager", "train.ahead=false", "train.batch=16", "train.device=cpu")
FAST = tuple(part for text in FAST_SETS for part in ("--set", text))


class Made:
    """A trainer that trains nothing, and remembers what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[dict[str, Any]] = []
        self.signal: int | None = None
        made = self

        class Trainer:
            def __init__(self, schedule: Schedule, **given: Any) -> None:
                made.given.append({"schedule": schedule, **given})

            def fit(self, begin: Callable[[], None]) -> Result:
                with held(made.given[-1]["run"]):
                    begin()
                return Result(made.given[-1]["run"], 7, made.signal is None, made.signal, {"loss": 0.25}, 1.5)

        def module(name: str, **members: Any) -> None:
            replaced = types.ModuleType(name)
            vars(replaced).update(members)
            monkeypatch.setitem(sys.modules, name, replaced)
            package, _, last = name.rpartition(".")
            if hasattr(sys.modules[package], last):
                monkeypatch.setattr(sys.modules[package], last, replaced)

        module("progc.train.trainer", Trainer=Trainer)
        module("progc.train.progress", Progress=lambda stream, shows: None, Meter=Meter)
        closed: list[bool] = []
        module(
            "progc.train.parallel.processes",
            opened_parallel=lambda kind, device: Single(torch.device("cpu")),
            closed=lambda: closed.append(True),
        )
        self.closed = closed


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def start(run: Command, net: Path, *more: str | Path) -> Any:
    return run("train", f"{net}:big", "--epochs", "4", "--stages", "2", "--out", net.parent / "run", *FAST, *more)


def test_a_source_needs_no_config_and_the_run_is_recorded(run: Command, net: Path, trainer: Made) -> None:
    outcome = start(run, net, "--set", "train.ema=[0.9]")
    assert outcome.code == 0, outcome.err
    assert (
        outcome.out
        == f"finished: step 7, 1.5 s of training\nlast validation: loss 0.25\nwritten: {net.parent / 'run'}\n"
    )
    folder = net.parent / "run"
    assert files_below(folder) == {".lock", "config.json", "plan.json", "run.json"}
    (given,) = trainer.given
    schedule, settings = given["schedule"], given["settings"]
    assert Schedule.read(folder / "plan.json").to_json() == schedule.to_json()
    assert (schedule.unit, schedule.total, settings.total, settings.batch, settings.ema) == ("epochs", 4, 4, 16, (0.9,))
    assert [stage.cost.batch for stage in schedule.stages] == [16, 16]
    assert given["config"] == json.loads((folder / "config.json").read_text())
    assert given["source"] is None and len(given["task"].samples) == 96 and given["inits"] == {}
    optimizer = given["optimizer"](given["program"].module())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    (entry,) = json.loads((folder / "run.json").read_text())["starts"]
    assert entry["command"][0] and entry["world"] == 1 and {"progc", "torch", "python"} <= entry["versions"].keys()
    assert trainer.closed == [True]


def test_json_is_one_object(run: Command, net: Path, trainer: Made) -> None:
    outcome = start(run, net, "--json")
    report = json.loads(outcome.out)
    assert (report["step"], report["finished"], report["signal"], report["metrics"]) == (7, True, None, {"loss": 0.25})
    assert {"build", "capture", "plan"} <= report["seconds"].keys() and report["versions"]


@pytest.mark.parametrize(("signal", "code"), [(15, 143), (2, 130)])
def test_a_signal_is_the_exit_code(run: Command, net: Path, trainer: Made, signal: int, code: int) -> None:
    trainer.signal = signal
    outcome = start(run, net)
    assert outcome.code == code
    assert outcome.out.startswith(f"stopped by signal {signal}; run the same command again to resume: step 7")


def test_the_same_command_goes_on_with_the_schedule_that_is_there(
    run: Command, net: Path, trainer: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(run, net).code == 0
    monkeypatch.setattr("progc.search.plan.plan_with", lambda *args, **options: pytest.fail("planned again"))
    again = start(run, net, "--set", "train.log_every=3", "--set", "train.keep=none")
    assert again.code == 0 and "progc: resuming run: " in again.err
    assert trainer.given[0]["schedule"].to_json() == trainer.given[1]["schedule"].to_json()
    folder = net.parent / "run"
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2
    assert json.loads((folder / "config.json").read_text())["train"]["log_every"] == 3


def test_a_cool_down_follows_the_last_stage(run: Command, net: Path, trainer: Made) -> None:
    more = ("--set", "train.cooldown=3", "--set", "train.min_lr=0.1")
    for _ in range(2):  # the second command resumes
        assert start(run, net, *more).code == 0
    for given in trainer.given:
        schedule = given["schedule"]
        assert (schedule.starts(), schedule.total, given["settings"].total) == ([0, 2], 7, 7)
        assert given["settings"].cooldown == 3
    assert start(run, net, *more, "--dry-run").code == 0


def test_another_run_in_the_folder_is_refused(run: Command, net: Path, trainer: Made) -> None:
    assert start(run, net).code == 0
    (net.parent / "run" / "step-00000007").mkdir()
    for more, message in (
        (
            ("--set", "train.lr=0.5"),
            r"run holds another run: `train.lr` was 0.001 and is 0.5 now; choose another --out",
        ),
        (("--stages", "1"), r"`plan.stages` was 2 and is 1 now"),
        (("--set", "train.lr_schedule=linear"), r"`train.lr_schedule` was 'cosine' and is 'linear' now"),
    ):
        outcome = start(run, net, *more)
        assert outcome.code == 2 and outcome.out == "" and re.search(message, outcome.err), outcome.err
    other = net.parent / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    outcome = run("train", f"{net}:big", "--epochs", "4", "--out", other)
    assert outcome.code == 2 and "is not empty and has no config.json" in outcome.err
    assert files_below(other) == {"notes.txt"} and len(trainer.given) == 1
    assert run("train", f"{net}:big", "--epochs", "4", "--out", other / "notes.txt").code == 2


def test_a_run_without_a_checkpoint_gives_its_folder_to_another(run: Command, net: Path, trainer: Made) -> None:
    assert start(run, net).code == 0
    outcome = start(run, net, "--set", "train.lr=0.5", "--stages", "1")
    assert outcome.code == 0 and "progc: new run: " in outcome.err, outcome.err
    assert [len(given["schedule"].stages) for given in trainer.given] == [2, 1]
    assert json.loads((net.parent / "run" / "config.json").read_text())["train"]["lr"] == 0.5


def test_what_may_change_when_a_run_resumes(
    run: Command, net: Path, trainer: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice of a failed run is taken, and a file has several names."""
    assert start(run, net).code == 0
    (net.parent / "run" / "step-00000007").mkdir()
    assert (
        start(run, net, "--set", "train.nan=skip", "--set", "train.max_skipped=3", "--set", "train.spike=6").code == 0
    )
    monkeypatch.chdir(net.parent)
    for name in ("net.py:big", "./net.py:big", "../" + net.parent.name + "/net.py:big"):
        outcome = run("train", name, "--epochs", "4", "--stages", "2", "--out", "run", *FAST)
        assert outcome.code == 0 and "progc: resuming run" in outcome.err, outcome.err
    other = run("train", "./net.py:Net", "--epochs", "4", "--stages", "2", "--out", "run", *FAST)
    assert other.code == 2 and "`source` was" in other.err


def test_growth_to_a_target_starts_at_the_source(run: Command, net: Path, trainer: Made) -> None:
    arguments = ("--to", "depth=4,width=16", "--stages", "2", "--steps", "20", "--out", net.parent / "run")
    outcome = run("train", f"{net}:Net", *arguments, *FAST, "--set", "init=depth=stack")
    assert outcome.code == 0, outcome.err
    (given,) = trainer.given
    assert given["source"].num_parameters() == 667 < given["program"].num_parameters()
    assert (given["schedule"].unit, given["settings"].total, given["inits"]) == ("steps", 20, {"depth": "stack"})


def test_how_weights_are_made_comes_from_the_run_or_its_plan(run: Command, net: Path, trainer: Made) -> None:
    plan = net.parent / "plan.json"
    shape = ("--stages", "2", "--steps", "20")
    outcome = run("plan", f"{net}:big", *shape, "--init", "depth=mogrow,source=all", "--out", plan)
    assert outcome.code == 0, outcome.err
    for number, more in enumerate(((), ("--init", "depth=stack"))):
        assert run("train", f"{net}:big", "--plan", plan, "--out", net.parent / f"{number}", *FAST, *more).code == 0
    assert run("train", f"{net}:big", *shape, "--out", net.parent / "2", *FAST, "--init", "mogrow,source=all").code == 0
    mogrow = {"depth": "mogrow", "source": "all"}
    assert [given["inits"] for given in trainer.given] == [mogrow, {"depth": "stack"}, mogrow]


TINY = "timm:vit_tiny_patch16_224?img_size=8&patch_size=4&in_chans=1&embed_dim=24&depth=2&num_heads=3"


def test_drop_path_of_a_plan_is_built_into_a_librarys_model(run: Command, tmp_path: Path, trainer: Made) -> None:
    plan, config = tmp_path / "plan.json", tmp_path / "run.toml"
    config.write_text(f"source = {TINY!r}\ndata = 'digits'\n[source_args]\nnum_classes = 10\n")
    shape = ("--stages", "2", "--steps", "20")
    outcome = run("plan", TINY, "--model-arg", "num_classes=10", *shape, "--regularise", "drop_path=.1", "--out", plan)
    assert outcome.code == 0, outcome.err
    built = f"{TINY}&num_classes=10&drop_path_rate=0.1"
    assert f"is built as {built}, for the drop-path of the plan" in outcome.err
    assert Schedule.read(plan).model.source == built
    for number, more in enumerate((("--plan", plan), (*shape, "--set", "plan.regularise=drop_path=.1"))):
        outcome = run("train", config, "--out", tmp_path / f"{number}", *FAST, *more)
        assert outcome.code == 0 and "is not set" not in outcome.err, outcome.err
    rates = [max(drop.rate for drop in find_drops(made["program"].graphs["train"])) for made in trainer.given]
    assert rates == pytest.approx([0.1, 0.1])


def test_drop_path_that_a_network_cannot_have_is_told_before_training(run: Command, net: Path) -> None:
    arguments = ("--steps", "20", "--stages", "2", "--set", "plan.regularise=drop_path=.1", "--dry-run", *FAST)
    outcome = run("train", f"{net}:Net", *arguments)
    assert outcome.code == 0, outcome.err
    assert "drop-path 0.1 is not set: the network was captured with a rate of 0" in outcome.err
    assert "`Net` takes no argument `drop_path_rate`" in outcome.err


def test_a_finished_plan_says_length_and_target(run: Command, net: Path, trainer: Made, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run("plan", f"{net}:Net", "--to", "depth=4", "--stages", "2", "--steps", "30", "--out", plan).code == 0
    outcome = run("train", f"{net}:Net", "--plan", plan, "--out", tmp_path / "run", *FAST)
    assert outcome.code == 0, outcome.err
    (given,) = trainer.given
    assert given["settings"].total == 30 and given["source"] is not None
    wrong = run("train", f"{net}:big", "--plan", plan, "--out", tmp_path / "wrong", *FAST)
    assert wrong.code == 2 and "the plan is for" in wrong.err and not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "4"], "no run folder is given; add --out RUN"),
        (["--out", "run"], "the length of the run is unknown; give epochs or steps"),
        (["--out", "run", "--epochs", "1"], "1 epochs are too few|too few for 4 stages"),
        (["--out", "run", "--epochs", "4", "--steps", "4"], "`epochs` and `steps` are both given"),
        (
            ["--out", "run", "--epochs", "4", "--set", "train.lr=x"],
            "--set train.lr=x: `train.lr`: expected a number, got 'x'",
        ),
        (["--out", "run", "--epochs", "4", "--set", "optimizer.name=adamx"], "unknown optimizer `adamx`; did you"),
        (
            ["--out", "run", "--epochs", "4", "--set", "plan.stages=0"],
            "expected an integer of at least 1, got 0",
        ),
        (["--out", "run", "--epochs", "4", "--set", "plan.depths=9"], "depths"),
        (["--out", "run", "--epochs", "4", "--set", "plan.regularise=x=1"], "regularisation: unknown name `x`"),
        (["--out", "run", "--epochs", "4", "--to", "vit_x"], "unknown target `vit_x`"),
        (["--out", "run", "--plan", "none.json"], "none.json cannot be read as a plan"),
        (["--epochs", "4", "--smoke", "1"], "--smoke 1: expected at least 2 steps per stage"),
        (["--epochs", "4", "--smoke", "2", "--dry-run"], "--dry-run and --smoke are both given"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    run: Command, net: Path, trainer: Made, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(net.parent)
    outcome = run("train", "net.py:big", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert re.search(message, outcome.err) and len(outcome.err.splitlines()) == 1, outcome.err
    assert files_below(net.parent) == {"net.py"} and not trainer.given


def test_samples_are_asked_for(run: Command, tmp_path: Path, trainer: Made) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(NET)
    outcome = run("train", bare, "--epochs", "4", "--out", tmp_path / "run")
    assert (
        outcome.code == 2
        and "needs samples and a loss; write def datasets()" in outcome.err
        and "digits" in outcome.err
    )
    outcome = run("train", "timm:resnet18", "--epochs", "4", "--out", tmp_path / "run")
    assert outcome.code == 2 and "training timm:resnet18 needs samples and a loss; give --data digits" in outcome.err


def test_other_ranks_are_silent(run: Command, net: Path, trainer: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    outcome = start(run, net)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    (net.parent / "run" / "step-00000007").mkdir()
    refused = start(run, net, "--set", "train.lr=0.5")
    assert refused.code == 2 and "`train.lr` was" in refused.err


def test_a_run_folder_that_cannot_be_written(net: Path, trainer: Made, run: Command) -> None:
    (net.parent / "file").write_text("")
    outcome = run("train", f"{net}:big", "--epochs", "4", "--out", net.parent / "file" / "run", *FAST)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1 and not trainer.given


def test_versions_are_read_without_importing() -> None:
    assert {"progc", "python", "torch", "safetensors"} <= record.versions().keys()


# --- real runs ------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_every_stage_and_trains_nothing(run: Command, net: Path) -> None:
    arguments = ["train", f"{net}:big", "--epochs", "4", "--stages", "2", "--out", net.parent / "run", "--batch", "16"]
    arguments += ["--dry-run", "--set", "train.ema=[0.9]"]
    shown = run(*arguments)
    assert shown.code == 0, shown.err
    assert "4 epochs of 6 steps, 24 steps; 96 samples, batch 16" in shown.out
    content = json.loads(run(*arguments, "--json").out)
    first, last = content["stages"]
    assert (first["steps"], last["begin"], content["steps"], content["steps_per_epoch"]) == (12, 12, 24, 6)
    assert first["parameters"] < last["parameters"] and last["trainable"] <= last["parameters"]
    assert last["checkpoint"] == 4 * last["parameters"] * 2 + 8 * last["trainable"]
    assert first["flops"] < last["flops"] and first["memory"] < last["memory"] and first["compiles"] >= 1
    assert content["config"]["train"]["batch"] == 16
    again = json.loads(run(*arguments, "--json", "--set", "train.recompute=true").out)["stages"]
    assert again[-1]["memory"] < last["memory"]
    assert not (net.parent / "run").exists()


def test_a_run_is_stopped_and_goes_on(run: Command, net: Path) -> None:
    outcome = start(run, net, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert (report["step"], report["finished"]) == (24, True)
    lines = (net.parent / "run" / "metrics.jsonl").read_text().splitlines()
    again = start(run, net, "--json")
    assert again.code == 0 and json.loads(again.out)["step"] == 24
    assert (net.parent / "run" / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines


STOPPING = """
import os, pathlib, signal
seen = []

def loss(outputs, batch):
    stop = pathlib.Path(__file__).with_name("stop")
    seen.append(0)
    if stop.exists() and len(seen) % 5 == 0:
        stop.unlink()
        os.kill(os.getpid(), signal.SIGTERM)
    return torch.nn.functional.cross_entropy(outputs, batch[1])
"""
"""Sends a SIGTERM in the middle of a step."""


def test_sigterm_saves_and_the_same_command_ends_with_the_same_weights(run: Command, net: Path) -> None:
    net.write_text(NET + DATA + STOPPING)
    folder = net.parent / "run"
    (net.parent / "stop").touch()
    stopped = start(run, net, "--json")
    assert stopped.code == 143, stopped.err
    report = json.loads(stopped.out)
    assert (report["finished"], report["signal"]) == (False, 15) and 0 < report["step"] < 24
    assert not (folder / "model.safetensors").exists()
    assert start(run, net).code == 0
    (net.parent / "again").mkdir()
    assert run("train", folder / "config.json", "--out", net.parent / "again").code == 0
    ends = [load_file(path / "model.safetensors") for path in (folder, net.parent / "again")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_smoke_run_resumes_to_the_same_weights(run: Command, net: Path) -> None:
    outcome = run("train", f"{net}:big", "--epochs", "40", "--stages", "2", "--smoke", "4", *FAST)
    assert outcome.code == 0, outcome.err
    assert re.match(r"smoke: 8 steps in 2 stages; resumed at step \d, it ended with the same weights", outcome.out)
    assert files_below(net.parent) == {"net.py"}


@pytest.mark.parametrize("text", ["[]", "{", '{"starts": 3, "train": 3}', "[" * 20000])
@pytest.mark.parametrize("name", ["config.json", "run.json", "plan.json"])
def test_damaged_files_of_a_run_are_one_line(run: Command, net: Path, trainer: Made, name: str, text: str) -> None:
    folder = net.parent / "run"
    folder.mkdir()
    config = configured(f"{net}:big", {"epochs": ("--epochs", 4), "plan.stages": ("--stages", 2)}, FAST_SETS)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    (folder / name).write_text(text)
    outcome = start(run, net)
    if outcome.code:
        assert outcome.code == 2 and len(outcome.err.splitlines()) == 1 and "internal" not in outcome.err, outcome.err
    else:
        # A run without a checkpoint pins nothing, so what is there is another run that makes room.
        found = json.loads((folder / name).read_text())
        assert found["starts"] if name == "run.json" else set(found) == set(config.to_json())


DENOISING = """
import torch

def datasets():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 4, 8, 8, generator=generator)
    step = torch.randint(1000, (16,), generator=generator)
    label = torch.randint(9, (16,), generator=generator)
    return [dict(hidden_states=noise[k], timestep=step[k], class_labels=label[k], target=noise[k]) for k in range(16)]

def loss(outputs, batch):
    return (outputs[0][:, :4] - batch["target"]).square().mean()
"""


@pytest.mark.slow  # builds a model of a large library; test_config.py has the smaller sibling
def test_the_config_file_of_a_librarys_model_trains(run: Command, tmp_path: Path) -> None:
    config = {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8,
        "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 9,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "data.py").write_text(DENOISING)
    outcome = run(
        "train", f"diffusers:{tmp_path}/config.json", "--data", tmp_path / "data.py", "--steps", "2", "--stages", "1",
        "--dry-run", *FAST,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "2 steps; 16 samples" in outcome.out
