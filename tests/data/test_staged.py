"""A stage's regularisation of samples: set, or told to be impossible before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.data.staged import for_stage, not_set
from progc.data.task import Task
from progc.errors import InputError
from progc.schedule import ModelRef, Point, Regularisation, Schedule, Space, Stage
from tests.train import running

FEATURES = progc.capture(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), (torch.zeros(4, 6),))


def points(classes: int = 3) -> Any:
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.TensorDataset(
        torch.randn(24, 6, generator=generator), torch.randint(0, classes, (24,), generator=generator)
    )


def scheduled(program: Any, *regular: Regularisation) -> Schedule:
    share = 1 / len(regular)
    made = tuple(Stage(k, Point({}, {}), share, None, each) for k, each in enumerate(regular))
    return Schedule(ModelRef.of(program), "linear", made, Space(), total=4, unit="steps")


def test_mixup_needs_no_images() -> None:
    batch = next(for_stage(Task(points()), Regularisation(mixup=0.8), FEATURES).batches(8, seed=0))
    assert batch[0].shape == (8, 6) and batch[1].shape == (8, 3)
    assert not torch.equal(batch[0], next(Task(points()).batches(8, seed=0))[0])


def test_mixup_that_a_later_stage_cannot_have_is_refused_before_training(tmp_path: Path) -> None:
    regular = [Regularisation(), Regularisation(mixup=0.2)]
    several = progc.capture(nn.Conv2d(3, 4, 3), (torch.zeros(2, 3, 8, 8),))
    for program, task, said in [
        (several, Task(torch.utils.data.TensorDataset(torch.zeros(8, 3, 8, 8), torch.zeros(8).long())), "classes"),
        (
            FEATURES,
            Task(torch.utils.data.TensorDataset(torch.zeros(8, 6), torch.zeros(8, 3))),
            "sample 0 is not",
        ),
    ]:
        with pytest.raises(InputError, match=f"mixup: .*{said}"):
            progc.Trainer(scheduled(program, *regular), program=program, task=task, run=tmp_path / "run",
                          settings=progc.Settings(batch=4))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_augmentation_that_samples_have_no_place_for_is_told() -> None:
    asked = [Regularisation(rand_augment=0.0), Regularisation(rand_augment=9, random_erasing=0.25)]
    expected = (
        "RandAugment and random erasing of the plan are not applied: these samples have no transforms for each stage"
    )
    assert not_set(Task(points()), asked, FEATURES) == (expected,)
    quiet = [Regularisation(drop_path=0.1, rand_augment=0.0), Regularisation()]
    assert not_set(Task(points()), quiet, FEATURES) == ()
    able = dataclasses.replace(Task(running.samples(20)), staged=lambda regularisation, size: Task(running.samples(20)))
    assert not_set(able, asked, running.program()) == ()
    assert not_set(able, asked, FEATURES) == (expected.replace("these samples have no transforms for each stage",
                                                               "there are no images"),)  # fmt: skip


def test_the_trainer_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from progc.train.progress import Progress

    schedule = scheduled(FEATURES, Regularisation(random_erasing=0.25))
    progc.Trainer(
        schedule, program=FEATURES, task=Task(points()), run=tmp_path, progress=Progress(sys.stderr),
        settings=progc.Settings(batch=4, compile="eager"),
    ).fit()  # fmt: skip
    assert "progc: random erasing of the plan is not applied: these samples have no" in capsys.readouterr().err
