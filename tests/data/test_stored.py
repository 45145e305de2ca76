"""Samples of a data set that the library `datasets` stored on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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
from progc.train.settings import Settings
from progc.train.trainer import Trainer

datasets = pytest.importorskip("datasets")
CLASSES = ["dark", "light"]


@pytest.fixture(scope="module")
def program() -> Program:
    """Takes images of 16 pixels in three channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return progc.capture(model, (torch.zeros(2, 3, 16, 16),))


def images(count: int, names: list[str] = CLASSES) -> Any:
    """Images of 20 x 24 pixels, grey and coloured ones, each with its class."""
    from PIL import Image

    modes = ["RGB", "L"]
    held = [Image.new(modes[n % 2], (20, 24), 200 * (n % 2)) for n in range(count)]
    rows = {"image": held, "label": [n % 2 for n in range(count)]}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def arrays(count: int, side: int = 16, nested: bool = False) -> Any:
    """Numbers [3, side, side], each a constant."""
    values = [np.full((3, side, side), n / 10, dtype=np.float32) for n in range(count)]
    plain, shape = datasets.Value("float32"), (3, side, side)
    kind = datasets.List(datasets.List(datasets.List(plain))) if nested else datasets.Array3D(shape, "float32")
    kinds = datasets.Features({"pixel_values": kind, "labels": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"pixel_values": values, "labels": [n % 2 for n in range(count)]}, features=kinds)


def stored(root: Path, **splits: Any) -> str:
    """Saves the splits and gives the text that names them; quietly."""
    datasets.disable_progress_bars()
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return f"hf:{root}"


def test_stored_images(tmp_path: Path, program: Program) -> None:
    """Another format that their author read them in makes no difference."""
    task = open_data(stored(tmp_path, train=images(6).with_format("torch"), test=images(4)), program)
    assert (len(task.samples), len(task.validation)) == (6, 4)
    assert [label for _, label in (task.samples[n] for n in range(4))] == [0, 1, 0, 1]
    stage = for_stage(task, Regularisation(rand_augment=9), program)
    (micro,) = next(iter(steps(stage, batch=6, seed=0, epoch=0)))
    assert micro[0].shape == (6, 3, 16, 16) and micro[0].dtype == torch.float32 and micro[1].dtype == torch.int64


@pytest.mark.parametrize("nested", [False, True])
def test_stored_numbers_are_the_input_as_they_stand(tmp_path: Path, program: Program, nested: bool) -> None:
    task = open_data(stored(tmp_path, train=arrays(6, nested=nested), validation=arrays(2, nested=nested)), program)
    image, label = task.samples[5]
    assert torch.equal(image, torch.full((3, 16, 16), 0.5)) and label == 1
    assert len(task.validation) == 2


def test_stored_numbers_of_another_size_are_resized(tmp_path: Path, program: Program) -> None:
    arrays(6, side=20).save_to_disk(str(tmp_path))  # without splits: all of it trains
    task = open_data(f"hf:{tmp_path}", program)
    assert task.validation is None
    torch.testing.assert_close(task.samples[3][0], torch.full((3, 16, 16), 0.3))


def test_a_run_on_stored_images(tmp_path: Path, program: Program) -> None:
    """Two steps, a validation, and the same again from the same seed."""
    task = open_data(stored(tmp_path / "data", train=images(8), validation=images(4)), program)
    plan = progc.plan(program, stages=1, total=1, resolutions="none", count=False)
    settings = Settings(batch=4, compile="eager", seed=3)
    ends = []
    for name in ("one", "two"):
        own = program.replace(tensors={key: nn.Parameter(t.detach().clone()) for key, t in program.tensors.items()})
        trainer = Trainer(plan, program=own, task=task, run=tmp_path / name, settings=settings)
        result = trainer.fit()
        assert result.finished and result.step == 2 and trainer.active is not None
        ends.append(trainer.active.module.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not torch.equal(ends[0]["0.weight"], program.tensors["0.weight"])


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path, program: Program) -> None:
    with pytest.raises(InputError, match=r"hf:.*/none: .*; expected a saved data set"):
        open_data(f"hf:{tmp_path / 'none'}", program)
    with pytest.raises(InputError, match="has the splits test; expected one that is called train"):
        open_data(stored(tmp_path / "a", test=images(2)), program)
    with pytest.raises(InputError, match="has the columns pixels, label; expected image and label"):
        open_data(stored(tmp_path / "b", train=images(2).rename_column("image", "pixels")), program)
    with pytest.raises(InputError, match="has string in the column label; expected numbers of classes"):
        text = images(2).cast_column("label", datasets.Value("string"))
        open_data(stored(tmp_path / "c", train=text), program)
    with pytest.raises(InputError, match="has other classes or columns for validation"):
        open_data(stored(tmp_path / "d", train=images(2), test=images(2, CLASSES[::-1])), program)
    with pytest.raises(InputError, match=r"has numbers of shape \[4\] in the column image; expected \[channels"):
        flat = datasets.Dataset.from_dict({"image": [[0.0] * 4], "label": [1]})
        open_data(stored(tmp_path / "e", train=flat), program)
    with pytest.raises(InputError, match="has string in the column image; expected images, or numbers"):
        open_data(stored(tmp_path / "f", train=datasets.Dataset.from_dict({"image": ["x"], "label": [1]})), program)
