"""The files that users copy: they run, and the demo notices a network that answers differently."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from progc.runs.config_file import configured

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/digits_vit.py, imported as the demo imports it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "digits_vit", raising=False)
    return importlib.import_module("digits_vit")


@pytest.fixture
def demo(digits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/digits_demo.py."""
    monkeypatch.delitem(sys.modules, "digits_demo", raising=False)
    return importlib.import_module("digits_demo")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/custom_op.py."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "custom_op", raising=False)
    return importlib.import_module("custom_op")


def test_the_network_with_kernels_of_its_own_grows(kernels: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    kernels.main()
    out = capsys.readouterr().out
    assert "3 of 5 axes grow" in out and "no rule" not in out
    assert float(out.rpartition(": ")[2]) < 1e-5


def test_derivatives_of_the_kernels(kernels: ModuleType) -> None:
    x, gain = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 6), (6,)))
    assert torch.autograd.gradcheck(lambda x, gain: kernels.rms_norm(x, gain, 1e-6), (x, gain))
    assert torch.autograd.gradcheck(kernels.swiglu, (x,))


def test_digits_vit_has_the_sizes_that_the_demo_grows_between(digits: ModuleType) -> None:
    small = digits.build()
    (images,) = digits.example_inputs()
    assert small(images).shape == (4, 10)
    with torch.device("meta"):
        grown = digits.DigitsViT(depth=12, width=768, heads=12)
    blocks = sum(p.numel() for p in grown.blocks.parameters())
    assert blocks == 12 * (12 * 768**2 + 13 * 768)  # twelve blocks of a ViT-B
    assert set(small.state_dict()) < set(grown.state_dict())


def test_shifted_moves_each_image_by_at_most_a_pixel(digits: ModuleType) -> None:
    images = torch.zeros(500, 1, 8, 8)
    images[:, 0, 3, 4] = 1
    moved = digits.shifted(images)
    assert moved.shape == images.shape
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(rows.tolist()) == {2, 3, 4} and set(columns.tolist()) == {3, 4, 5}


def test_a_plain_loop_trains_in_stages(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage per depth, each from where the last one was; the class itself holds what was trained."""
    monkeypatch.delitem(sys.modules, "stages_loop", raising=False)
    loop = importlib.import_module("stages_loop")
    model, accuracy = loop.train(steps=150)
    assert isinstance(model, digits.DigitsViT) and accuracy > 0.5  # a tenth would be chance
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == ["stage 0, blocks", "stage 1, blocks", "stage 2, blocks"]
    assert [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) parameters", "".join(told))][-1] == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert "ended at step 150: the run is over" in told[-1]


STAGE = re.compile(r"stage (\d), blocks:(\d): [\d,]+ parameters, .*accuracy ([\d.]+)%")


def in_stages(folder: Path, *command: str) -> str:
    """What an example prints that trains in three stages of an epoch each; checks the stages and their boundaries."""
    script, options = str(EXAMPLES / command[-1]), ["--epochs", "3", "--stages", "3"]
    done = subprocess.run(
        [sys.executable, *command[:-1], script, *options], capture_output=True, text=True, timeout=1800, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    told = STAGE.findall(done.stdout)
    assert [(stage, depth) for stage, depth, _ in told] == [("0", "2"), ("1", "3"), ("2", "4")]
    assert float(told[-1][2]) > 50  # a tenth would be chance
    differences = [float(found) for found in re.findall(r"outputs differ by (\S+) in float64", done.stdout)]
    assert len(differences) == 2 and max(differences) < 1e-12
    return done.stdout


# A plain loop trains in stages above for each commit; these three import a trainer and start processes.
@pytest.mark.slow
def test_stages_in_a_loop_of_accelerate(tmp_path: Path) -> None:
    assert "rank 0 of 1: " in in_stages(tmp_path, "stages_accelerate.py")


@pytest.mark.slow
def test_processes_of_accelerate_hold_the_same_network(tmp_path: Path) -> None:
    """Two of them, over gloo: weights, averages and optimizer state are the same bytes."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = in_stages(tmp_path, *run, "stages_accelerate.py")
    hashes = dict(re.findall(r"rank (\d) of 2: ([0-9a-f]{64})", told))
    assert hashes.keys() == {"0", "1"} and hashes["0"] == hashes["1"]


@pytest.mark.slow
def test_stages_in_lightning(tmp_path: Path) -> None:
    """Epochs and steps are counted on over all stages: 23 batches of 64 make an epoch of 1,437 digits."""
    told = in_stages(tmp_path, "stages_lightning.py")
    assert re.findall(r"epoch (\d+), step (\d+)", told) == [("1", "23"), ("2", "46"), ("3", "69")]


def test_held_out_digits_are_never_trained_on(digits: ModuleType) -> None:
    train_images, train_labels, test_images, test_labels = digits.load_digits()
    assert (len(train_images), len(test_images)) == (1437, 360) == (len(train_labels), len(test_labels))
    seen = {image.numpy().tobytes() for image in train_images}
    assert not any(image.numpy().tobytes() in seen for image in test_images)
    again = digits.load_digits()
    assert all(torch.equal(a, b) for a, b in zip(again, digits.load_digits(), strict=True))


def test_training_learns(digits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by the step: as many steps on every machine."""
    clock = (0.02 * tick for tick in itertools.count())
    monkeypatch.setattr(digits, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    images, labels, test_images, test_labels = digits.load_digits()
    model = digits.DigitsViT(depth=1, width=64, heads=1)
    assert digits.train(model, images, labels, seconds=4) == 200
    accuracy = (digits.predict(model, test_images).argmax(1) == test_labels).float().mean()
    assert accuracy > 0.3  # a tenth would be chance


def test_same_answers_counts_images_not_totals(demo: ModuleType) -> None:
    before = torch.eye(4)
    assert demo.same_answers(before, before * 2) == 4
    assert demo.same_answers(before, before.roll(1, 0)) == 0  # as many of each class, other images


@pytest.mark.parametrize(("spoiled", "exit_code"), [(False, 0), (True, 1)])
def test_the_demo_notices_a_network_that_answers_differently(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoiled: bool, exit_code: int
) -> None:
    def grow(weights: Path, out: Path, _console: object) -> None:
        tensors = demo.load_file(weights)
        if spoiled:
            tensors["head.weight"] = tensors["head.weight"].roll(1, 0)
        out.mkdir()
        demo.save_file(tensors, out / "model.safetensors")
        (out / "report.json").write_text('{"seconds": {}, "max_rel_diff": 0.0, "lossless": true}', encoding="utf-8")

    monkeypatch.setattr(demo, "grow", grow)
    monkeypatch.setattr(demo, "GROWN_SIZE", {"depth": 4, "width": 192, "heads": 3})
    monkeypatch.setattr(sys, "argv", ["digits_demo.py", "--seconds", "1", "--out", str(tmp_path)])
    assert demo.main() == exit_code


@pytest.fixture
def progressive(digits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/progressive_demo.py, which `make demo` runs."""
    for name in ("progressive_vit", "progressive_demo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("progressive_demo")


def decided(stage: int, step: int, depths: dict[int, float], winner: int, reason: str, steps: int) -> dict[str, Any]:
    """A line `decision` as `progc train` writes it; `depths` holds the loss of each candidate, by its blocks."""
    candidates = [
        {"point": {"depths": {"blocks": depth}}, "scores": {"loss": loss, "time": depth / 1000} if steps else {}}
        for depth, loss in depths.items()
    ]
    scores = {"winner": winner, "reason": reason, "settings": {"steps": steps}, "candidates": candidates}
    measured = {"seconds": 7.0, "seconds_search": 1.5, "seconds_save": 0.25}
    return {"kind": "decision", "stage": stage, "step": step, "scores": scores, "measured": measured}


@pytest.mark.parametrize("lossless", [True, False])
def test_the_progressive_demo_tells_what_the_runs_wrote(
    progressive: ModuleType, tmp_path: Path, lossless: bool
) -> None:
    """Candidates, sizes, steps, losses and seconds are those of the run's files; a lossy growth is reported."""
    stages = [
        {"index": index, "point": {"depths": {"blocks": depth}}, "cost": {"parameters": 1000 * depth}}
        for index, depth in enumerate((2, 6, 8))
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    boundary = {"kind": "boundary", "loss_before": 1.25, "loss_after": 1.5, "max_rel_diff": 2e-15, "lossless": True}
    lines = [
        {"kind": "train", "step": 1},
        decided(0, 10, {2: 2.25, 6: 2.5, 8: 2.125}, 0, "blocks:2: fastest of 3 candidates", 10),
        boundary | {"stage": 1, "step": 40, "measured": {"seconds_lost": 0.5}},
        decided(1, 40, {6: 0.0}, 0, "blocks:6: the only candidate, so no search was needed", 0),
        boundary | {"stage": 2, "step": 60, "lossless": lossless, "measured": {"seconds_lost": 0.75}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    reports = {
        "full size": {"run": "full", "step": 90, "train_seconds": 30.0},
        "progressive": {"run": str(tmp_path), "step": 88, "train_seconds": 20.0},
    }
    console = progressive.Console(record=True, width=112, file=io.StringIO())
    right = {"full size": (351, 360), "progressive": (350, 360)}
    assert progressive.story(reports, right, 4, console) is lossless
    text = console.export_text()
    told = " ".join(text.split())
    assert "8 blocks and 8,000 parameters" in told and "4 epochs with the same settings: 90 and 88 steps" in told
    assert re.search(
        r"1 +2 +2.2500 +25% +chosen: fastest of 3 candidates *\n +6 +2.5000 +75% *\n +8 +2.1250 +100%", text
    )
    assert re.search(r"2 +6 +chosen: the only candidate, so no search was needed", text)
    changed = r" +1.2500 +1.5000 +2.0e-15 *\n"
    assert re.search(r"1, search +0 to 10 +up to 8 *\n +1 +10 to 40 +2 +2,000 *\n", text)
    assert re.search(rf"2 +40 to 60 +6 +6,000{changed} +3 +60 to 88 +8 +8,000{changed}", text)
    assert ("No growth changed" in text) is lossless
    assert re.search(r"full size +30.0 +0.0 +0.0 +351 of 360 \(97.50%\)", text)
    assert re.search(r"progressive +20.0 +3.5 +1.2 +350 of 360 \(97.22%\)", text)
    assert "speed-up: 1.50x" in text and "did not pay" not in text
    assert "10 of the 88 steps trained candidates" in told and "equal as far as they can tell" in told


def test_the_progressive_demo_does_not_read_more_out_of_360_images_than_they_hold(progressive: ModuleType) -> None:
    def verdict(full: int, own: int) -> str:
        return str(progressive.told({"full size": (full, 360), "progressive": (own, 360)}))

    assert "1 image apart, are equal" in verdict(350, 349)
    assert "3 images apart, are equal" in verdict(350, 353)
    assert "progressive is ahead by 4 images (1.1%)" in verdict(350, 354)
    assert "full size is ahead by 10 images (2.8%)" in verdict(355, 345)


def test_the_plan_of_the_progressive_demo_is_open(progressive: ModuleType) -> None:
    """The stages are decided in training, and most of each stage trains the network that its search chose."""
    config = configured(str(progressive.CONFIG), {})
    plan = config.plan
    assert (plan.strategy, plan.decide) == ("one-shot", "training")
    assert config.epochs is not None and isinstance(plan.shares, list) and len(plan.shares) == 3
    assert min(plan.shares) * config.epochs > 2 * plan.settings["epochs"]


@pytest.mark.slow  # two runs of `progc train`; what it prints is tested above
def test_the_progressive_demo_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "progressive_demo.py"), "--epochs", "8", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env={**os.environ, "COLUMNS": "112"})
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "8 epochs with the same settings: 176 steps each" in told and told.count("chosen: ") == 2
    assert "88 of the 176 steps trained candidates" in told
    assert "No growth changed" in told and "speed-up: " in told


@pytest.mark.slow  # trains, and grows to the size of a ViT-B
def test_the_demo_runs_and_every_answer_is_the_same(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "digits_demo.py"), "--seconds", "3", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "same prediction on 360 of 360 images" in done.stdout
    assert "lossless: True" in done.stdout
    accuracies = re.search(r"accuracy\D+([\d.]+%)\D+([\d.]+%)", done.stdout)
    assert accuracies is not None and accuracies[1] == accuracies[2]
    assert {path.name for path in (tmp_path / "demo" / "grown").iterdir()} == {
        "model.safetensors",
        "plan.json",
        "report.json",
    }
