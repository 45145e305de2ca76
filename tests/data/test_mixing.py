"""Mixup: the same blends whatever ranks, micro-batches and workers; both labels in proportion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import progc
from progc.data.loading import steps
from progc.data.staged import Mixed, classes_of
from progc.data.task import Task
from progc.errors import InputError
from progc.schedule import Regularisation

CLASSES = 5


class Numbers:
    """Sample n is the one-hot vector of n, its class is n % 5: a blend tells what it was made of."""

    def __init__(self, length: int = 40) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        torch.rand(index % 3)  # as a transform would draw
        return nn.functional.one_hot(torch.tensor(index), self.length).float(), index % CLASSES


def served(**options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = steps(Task(Mixed(Numbers(), 0.8, CLASSES)), batch=8, seed=3, epoch=2, **options)
    return [(torch.cat([m[0] for m in step]), torch.cat([m[1] for m in step])) for step in found]


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_blends_follow_from_seed_epoch_and_index() -> None:
    expected = served()
    for options in ({"accumulate": 3}, {"workers": 2}, {"workers": 1, "accumulate": 2}):
        assert same(expected, served(**options)), options
    assert same(expected[2:], served(start=16))
    parts = [served(rank=rank, world=2) for rank in range(2)]
    together = [tuple(torch.cat(pair) for pair in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
    assert same(expected, together)


def test_labels_are_in_proportion_to_samples() -> None:
    for blend, target in (pair for step in served() for pair in zip(*step, strict=True)):
        by_class = torch.stack([blend[k::CLASSES].sum() for k in range(CLASSES)])
        torch.testing.assert_close(by_class, target)
        assert target.sum().item() == pytest.approx(1.0)


def test_lambda_is_of_the_beta_distribution() -> None:
    """Variance of Beta(a, a): 1 / (4 (2a + 1)); 2,000 samples of distinct pairs."""
    np.random.seed(0)
    shares = []
    mixed = Mixed(Numbers(), 0.5, CLASSES)
    for _ in range(2000):
        blend, _ = mixed[7]
        if blend.count_nonzero() == 2:
            shares.append(blend[7].item())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize("samples", [[torch.zeros(2)], [(torch.zeros(2), torch.zeros(3))], [(torch.zeros(2), 9)]])
def test_samples_that_cannot_be_mixed(samples: Any) -> None:
    with pytest.raises(InputError, match="mixup: sample 0 is"):
        Mixed(samples, 0.2, CLASSES)[0]


def test_classes_are_those_of_the_network() -> None:
    example = (torch.zeros(2, 3, 8, 8),)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    assert classes_of(progc.capture(classifier, example)) == 7
    with pytest.raises(InputError, match=r"mixup: expected an output of shape \[batch, classes\], got"):
        classes_of(progc.capture(nn.Conv2d(3, 4, 3), example))


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-6, 1.0, 1e6])
def test_shares_are_numbers_for_every_alpha(alpha: float) -> None:
    np.random.seed(0)
    mixed = Mixed(Numbers(), Regularisation(mixup=alpha).mixup or 0.0, CLASSES)
    for _ in range(200):
        blend, target = mixed[3]
        assert blend.isfinite().all() and target.sum().item() == pytest.approx(1.0) and target.min() >= 0
    with pytest.raises(InputError, match=r"mixup: expected a number from 0 to 1e\+06, got inf"):
        Regularisation(mixup=float("inf"))
