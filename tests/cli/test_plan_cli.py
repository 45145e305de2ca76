"""`progc plan` and `progc inspect PLAN` on good input: what is printed, written, and computed from what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import progc
import progc.search.plan
from progc.growth.grow import grow_with_report
from progc.models.opening import open_source, resolve_target
from progc.schedule import Schedule
from progc.schedule.stage import bound
from tests.command import DATA, NET, Command, files_below

TWO = ("--depths", "none", "--widths", "none", "--unfreeze", "prefix:2")
"""Options of a space with two candidates."""

IMAGE_NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

class Image(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 2)
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))

    def forward(self, x):
        x = self.embed(x)
        x = x.flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(x).mean(1))

def build():
    return Image()

def example_inputs():
    return (torch.randn(2, 3, 16, 16),)
"""
"""A user's file: patches, positions, four blocks."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.py"
    path.write_text(IMAGE_NET)
    return path


def test_a_linear_plan_is_printed_written_and_read_again(run: Command, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    planned = run("plan", image, "--stages", "2", "--epochs", "10", "--batch", "8", "--sid", "--out", out)
    assert planned.code == 0, planned.err
    assert re.search(r"^progc: capture: [\d.]+ s$", planned.err, re.MULTILINE)
    schedule = Schedule.read(out)
    assert [stage.point.depths for stage in schedule.stages] == [{"blocks": 2}, {"blocks": 4}]
    assert [stage.point.resolution for stage in schedule.stages] == [(8, 8), (16, 16)]
    assert [stage.sid for stage in schedule.stages] == [0, 1]
    assert schedule.starts() == [0, 5] and schedule.model.source == str(image)
    assert all(stage.cost is not None and stage.cost.batch == 8 for stage in schedule.stages)
    assert schedule.speedup is not None and 1 < schedule.speedup < bound(schedule.stages)
    assert files_below(tmp_path) == {"image.py", "plan.json"}

    shown = run("inspect", out)
    assert shown.code == 0 and shown.err == ""
    assert planned.out == f"{shown.out}\nwritten: {out}\n"
    assert re.search(r"^ +1 +50 % +16 +4 +100 %", shown.out, re.MULTILINE)
    detail = run("inspect", out, "--stage", "1")
    assert "grow-depth{to=blocks:4},grow-resolution{to=16}" in detail.out


def test_regularisation_grows_up_to_what_was_asked_for(run: Command, net: Path) -> None:
    text = "drop_path=0,rand_augment=9,mixup=0.2"
    for option, mode in ((text, "default"), (text, "reference"), ("none", "default")):
        ran = run("plan", net, "--stages", "3", "--mode", mode, "--regularise", option, "--json")
        assert ran.code == 0, ran.err
        found = [stage["regularisation"] for stage in json.loads(ran.out)["stages"]]
        if option == "none":
            assert found == [{}, {}, {}]
            continue
        assert found[-1] == {"drop_path": 0.0, "rand_augment": 9.0, "mixup": 0.2}
        assert 0 < found[0]["rand_augment"] <= found[1]["rand_augment"] < 9
        assert found[0]["mixup"] <= found[1]["mixup"] < 0.2


def test_json_is_one_object_that_is_a_plan(run: Command, image: Path, tmp_path: Path) -> None:
    outcome = run("plan", image, "--stages", "2", "--json")
    assert outcome.code == 0, outcome.err
    content = json.loads(outcome.out)
    assert content.keys() >= {"format", "version", "stages", "space", "speedup", "time_shares", "seconds", "versions"}
    assert content["seconds"].keys() == {"build", "capture", "plan"} and sum(content["time_shares"]) == pytest.approx(1)
    saved = tmp_path / "saved.json"
    saved.write_text(outcome.out)
    again = run("inspect", saved, "--json")
    assert again.code == 0, again.err
    assert {**json.loads(again.out), "seconds": None, "versions": None} == {
        **content,
        "seconds": None,
        "versions": None,
    }
    assert run("inspect", saved).code == 0
    stage = json.loads(run("inspect", saved, "--stage", "0", "--json").out)
    assert stage["passes"] == {"of_full": "shrink{depth=blocks:2 resolution=8}", "from_before": None}


def test_the_same_seed_gives_the_same_plan(run: Command, net: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("a.json", "b.json"):
        outcome = run("plan", f"{net}:big", "--stages", "2", "--seed", "3", "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]


def test_a_linear_plan_reads_no_weight(run: Command, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    plan = progc.search.plan.plan_with

    def watched(program: progc.Program, *options: Any, **more: Any) -> Schedule:
        seen.append(all(tensor.is_meta for _, tensor in program.parameters()))
        return plan(program, *options, **more)

    monkeypatch.setattr(progc.search.plan, "plan_with", watched)
    for more in ([], ["--to", "depth=6"], ["--strategy", "zero-shot", "--batch", "16", *TWO]):
        assert run("plan", f"{net}:big", "--stages", "2", *more).code == 0
    assert seen == [True, True, False]


def test_planning_towards_a_target_starts_at_the_source(run: Command, net: Path, tmp_path: Path) -> None:
    for target in ("depth=4,width=16", f"{net}:big"):
        out = tmp_path / "plan.json"
        outcome = run("plan", f"{net}:Net", "--to", target, "--stages", "3", "--out", out)
        assert outcome.code == 0, outcome.err
        schedule = Schedule.read(out)
        first, last = schedule.stages[0].point, schedule.stages[-1].point
        assert (first.depths, last.depths) == ({"blocks": 2}, {"blocks": 4})
        assert first.widths and all(2 * size == last.widths[name] for name, size in first.widths.items())
        source = open_source(f"{net}:Net")
        model = source.build()
        small = progc.capture(model, *source.example(model))
        full = progc.grow(small, to=resolve_target(target, small))  # type: ignore[arg-type]
        assert schedule.stages[0].cost is not None
        assert schedule.stages[0].cost.parameters == small.num_parameters()
        assert schedule.model.parameters == full.num_parameters()
        schedule.check(full)


def test_growth_without_check_makes_no_weights(net: Path) -> None:
    source = open_source(f"{net}:Net")
    model = source.build()
    program = progc.capture(model, *source.example(model))
    target = resolve_target("depth=4,width=16")
    checked, planned = (grow_with_report(program, target, check=check) for check in (True, False))
    assert planned.report["max_rel_diff"] is None and checked.report["max_rel_diff"] < 1e-9
    assert all(tensor.is_meta for _, tensor in planned.program.parameters())
    shapes = [{name: tensor.shape for name, tensor in growth.program.tensors.items()} for growth in (checked, planned)]
    assert shapes[0] == shapes[1] and planned.plan.lossless


@pytest.mark.parametrize("strategy", ["zero-shot", "one-shot"])
def test_a_search_uses_the_samples_of_the_file(run: Command, net: Path, tmp_path: Path, strategy: str) -> None:
    settings = ["--set", "epochs=2"] if strategy == "one-shot" else [*TWO]
    arguments = ["plan", f"{net}:big", "--strategy", strategy, "--stages", "2", "--batch", "16", *settings]
    out = tmp_path / "plan.json"
    outcome = run(*arguments, "--out", out)
    assert outcome.code == 0, outcome.err
    schedule = Schedule.read(out)
    (decision,) = schedule.decisions
    assert decision.stage == 0 and len(decision.candidates) > 1 and decision.reason in " ".join(outcome.out.split())
    assert schedule.stages[0].point == decision.candidates[decision.winner].point
    assert "search at stage 0" in run("inspect", out, "--stage", "0").out


def test_samples_may_come_from_another_file(run: Command, net: Path, tmp_path: Path) -> None:
    bare, data = tmp_path / "bare.py", tmp_path / "data.py"
    bare.write_text(NET)
    data.write_text("import torch\n" + DATA)
    arguments = ("--strategy", "zero-shot", "--stages", "2", "--batch", "16", *TWO, "--json")
    outcome = run("plan", f"{bare}:big", "--data", data, *arguments)
    assert outcome.code == 0, outcome.err
    own = run("plan", f"{net}:big", *arguments)
    stages = [[stage["point"] for stage in json.loads(each.out)["stages"]] for each in (outcome, own)]
    assert stages[0] == stages[1]


def test_measured_steps_are_shown(run: Command, net: Path) -> None:
    outcome = run("plan", f"{net}:big", "--stages", "2", "--batch", "8", "--measure", "--json")
    assert outcome.code == 0, outcome.err
    assert all(stage["cost"]["seconds"] > 0 for stage in json.loads(outcome.out)["stages"])


def test_samples_may_be_given_by_name(run: Command, tmp_path: Path) -> None:
    path = tmp_path / "image.py"
    path.write_text(IMAGE_NET.replace("nn.Linear(8, 2)", "nn.Linear(8, 10)"))
    outcome = run("plan", path, "--stages", "2", "--batch", "8", "--measure", "--data", "digits", "--json")
    assert outcome.code == 0, outcome.err
    assert all(stage["cost"]["seconds"] > 0 for stage in json.loads(outcome.out)["stages"])


def test_a_plan_for_another_model_is_noticed(run: Command, net: Path, tmp_path: Path) -> None:
    assert run("plan", f"{net}:big", "--stages", "2", "--out", tmp_path / "plan.json").code == 0
    schedule = Schedule.read(tmp_path / "plan.json")
    for name, fits in (("big", True), ("Net", False)):
        source = open_source(f"{net}:{name}")
        model = source.build(seed=5)
        program = progc.capture(model, *source.example(model))
        if fits:
            schedule.check(program)
            continue
        with pytest.raises(progc.errors.InputError, match="the plan is for Net with .* parameters, not for this Net"):
            schedule.check(program)


# --- golden files ---------------------------------------------------------------------------------------------------

DIT = """
import torch

def build():
    from diffusers import DiTTransformer2DModel
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=20,
    )
"""

PLANS: dict[str, str] = {
    "plan/linear_vit.txt": "vit.py --stages 3 --epochs 100 --batch 64",
    "plan/linear_dit.txt": "dit.py --stages 2 --batch 16 --unfreeze interleave:2 --depths none --resolutions 4,8",
}
VIT = """
def build():
    import timm
    return timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=6, num_classes=10)
"""


@pytest.mark.parametrize("path", PLANS)
def test_linear_plans_print(
    run: Command, golden: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vit.py").write_text(VIT)
    Path("dit.py").write_text(DIT)
    outcome = run("plan", *PLANS[path].split())
    assert outcome.code == 0, outcome.err
    assert max(map(len, outcome.out.splitlines())) <= 100
    golden(path, f"$ progc plan {PLANS[path]}\n{outcome.out}")
