"""Samples by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import progc
from progc.data.loading import steps
from progc.data.opening import open_data
from progc.data.staged import for_stage
from progc.errors import InputError
from progc.ir.program import Program
from progc.schedule import Regularisation


@pytest.fixture(scope="module")
def program() -> Program:
    """Takes images of 16 pixels in three channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return progc.capture(model, (torch.zeros(2, 3, 16, 16),))


def images(root: Path, classes: int = 2, each: int = 3) -> None:
    """Small files in folders of classes."""
    from PIL import Image

    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (20, 24), (80 * label, 40 * number, 9)).save(folder / f"{number}.png")


def test_digits_have_the_networks_channels_and_size(program: Program) -> None:
    task = open_data("digits", program)
    assert len(task.samples) + len(task.validation) == 1797
    image, label = task.samples[0]
    assert image.shape == (3, 16, 16) and 0 <= int(label) < 10


def test_folders_of_classes(tmp_path: Path, program: Program) -> None:
    images(tmp_path / "train")
    images(tmp_path / "val", each=1)
    task = open_data(f"imagefolder:{tmp_path}", program)
    assert (len(task.samples), len(task.validation)) == (6, 2)
    stage = for_stage(task, Regularisation(rand_augment=9), program)
    (micro,) = next(iter(steps(stage, batch=4, seed=0, epoch=0)))
    assert micro[0].shape == (4, 3, 16, 16) and micro[1].shape == (4,)
    (again,) = next(iter(steps(stage, batch=4, seed=0, epoch=0)))
    (later,) = next(iter(steps(stage, batch=4, seed=0, epoch=1)))
    assert torch.equal(micro[0], again[0]) and not torch.equal(micro[0], later[0])


def test_a_file_that_is_no_image_is_named(tmp_path: Path, program: Program) -> None:
    images(tmp_path / "train")
    (tmp_path / "train" / "class1" / "0.png").write_bytes(b"no image")
    task = open_data(f"imagefolder:{tmp_path}", program)
    with pytest.raises(InputError, match=r"class1/0\.png cannot be read as an image"):
        for index in range(len(task.samples)):
            task.samples[index]


@pytest.mark.parametrize("text", ["digit", "imagefolder", "imagefolder:", "hf:", "parquet:x", ""])
def test_what_is_no_name_is_refused(text: str, program: Program) -> None:
    with pytest.raises(InputError, match=r"--data .*(did you mean|expected digits)"):
        open_data(text, program)


def test_a_folder_without_images_is_refused(tmp_path: Path, program: Program) -> None:
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(InputError, match=r"expected train/CLASS"):
        open_data(f"imagefolder:{tmp_path}", program)


def test_mixup_where_a_plan_asks_for_it(program: Program) -> None:
    task = for_stage(open_data("digits", program), Regularisation(mixup=0.2), program)
    inputs, targets = next(task.batches(8, seed=0, count=1))
    assert targets.shape == (8, 10) and torch.allclose(targets.sum(1), torch.ones(8))
    assert task.loss(torch.zeros(8, 10), (inputs, targets)).item() == pytest.approx(2.302585)
    assert task.validation is not None and isinstance(task.validation[0][1], (int, torch.Tensor))


def test_more_classes_than_the_network_has(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    three = progc.capture(model, (torch.zeros(2, 3, 16, 16),))
    images(tmp_path / "train", classes=4)
    for text, number in (("digits", 10), (f"imagefolder:{tmp_path}", 4)):
        with pytest.raises(InputError, match=f"has {number} classes, but the network has 3; build it with at least"):
            open_data(text, three)
