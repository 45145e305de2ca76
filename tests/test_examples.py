"""The files that users copy: they run, and the demo notices a network that answers differently."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from types import ModuleType

import pytest
import torch

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


@pytest.mark.parametrize("lossless", [True, False])
def test_the_progressive_demo_tells_what_the_runs_wrote(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lossless: bool
) -> None:
    """Sizes, steps, losses and differences are those of the run's files; a growth that is not lossless is reported."""
    for name in ("progressive_vit", "progressive_demo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    demo = importlib.import_module("progressive_demo")
    stages = [
        {"index": index, "point": {"depths": {"blocks": depth}}, "cost": {"parameters": 1000 * depth}}
        for index, depth in enumerate((3, 12))
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    boundary = {"kind": "boundary", "stage": 1, "step": 40, "loss_before": 1.25, "loss_after": 1.5}
    boundary |= {"max_rel_diff": 2e-15, "lossless": lossless}
    lines = [json.dumps(line) + "\n" for line in ({"kind": "step", "step": 1}, boundary)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    reports = {
        "full size": {"run": "full", "step": 90, "train_seconds": 30.0},
        "progressive": {"run": str(tmp_path), "step": 88, "train_seconds": 20.0},
    }
    console = demo.Console(record=True, width=120, file=io.StringIO())
    right = {"full size": 0.975, "progressive": 0.98}
    assert demo.story(reports, right, console) is lossless
    text = console.export_text()
    assert "12,000 parameters" in text and "90 and 88 steps" in text
    assert re.search(r"1 +0 to 40 +3 +3,000 *\n", text)
    assert re.search(r"2 +40 to 88 +12 +12,000 +1.2500 +1.5000 +2.0e-15", text)
    assert re.search(r"full size +30.0 +97.50%", text) and re.search(r"progressive +20.0 +98.00%", text)
    assert "speed-up: 1.50x" in text
    assert ("No growth changed" in text) is lossless


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
