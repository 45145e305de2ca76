"""Small networks with real tasks for searches: digits for a transformer, denoising for a conditional one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import progc
import progc.schedule.costing
from examples.digits_vit import DigitsViT, load_digits
from progc.data.task import Task
from progc.ir.program import Program
from progc.schedule import Space, Unfreeze
from progc.search import probing
from tests import zoo


def levels(*shapes: str, of: int = 4) -> tuple[Unfreeze, ...]:
    """All levels of these shapes."""
    return tuple(Unfreeze(shape, level, of) for shape in shapes for level in range(1, of + 1))


INTERLEAVED = Space(unfreeze=levels("interleave"))
SHAPES = Space(unfreeze=levels("interleave", "prefix", "suffix"))


@functools.cache
def digits(count: int | None = None) -> Task:
    """scikit-learn's digits: pairs of an image `[1, 8, 8]` and its label."""
    images, labels, _, _ = load_digits()
    return Task(list(zip(images[:count], labels[:count], strict=True)))


@functools.cache
def transformer(depth: int = 4, seed: int = 0) -> Program:
    """A vision transformer for digits with perturbed weights; shared, do not change it."""
    torch.manual_seed(seed)
    model = zoo.perturb(DigitsViT(depth=depth, width=24, heads=2), seed)
    return progc.capture(model, (torch.rand(4, 1, 8, 8),))


class ResidualConvNet(nn.Module):
    """Images `[batch, 1, 8, 8]` to 10 logits by residual blocks with BatchNorm and dropout."""

    def __init__(self, depth: int = 4, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(depth)
        )
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.drop(x.mean((2, 3))))


@functools.cache
def convolutional() -> Program:
    """`ResidualConvNet` with perturbed weights and statistics; shared, do not change it."""
    torch.manual_seed(2)
    return progc.capture(zoo.perturb(ResidualConvNet()), (torch.rand(4, 1, 8, 8),))


def fresh(program: Program) -> Program:
    """The program over tensors of its own, tied ones tied."""
    made: dict[int, torch.Tensor] = {}
    for tensor in program.tensors.values():
        own = tensor.detach().clone()
        kept = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
        made.setdefault(id(tensor), kept)
    return program.replace(tensors={name: made[id(tensor)] for name, tensor in program.tensors.items()})


# -- denoising --------------------------------------------------------------------------------------------------------


class Noisy:
    """Latents `[4, 8, 8]` made of digits, with noise, time and label that follow from the index alone."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        image, label = digits().samples[index]
        generator = torch.Generator().manual_seed(index)
        time = torch.randint(1000, (), generator=generator)
        return {
            "latent": image.expand(4, 8, 8) * torch.tensor([1.0, -1.0, 0.5, 2.0])[:, None, None],
            "noise": torch.randn(4, 8, 8, generator=generator),
            "time": time,
            "class": label,
        }


def noised(batch: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The network's inputs: the latent with its share of noise, the time and the class."""
    kept = (1 - batch["time"] / 1000)[:, None, None, None]
    mixed = kept.sqrt() * batch["latent"] + (1 - kept).sqrt() * batch["noise"]
    return (mixed,), {"timestep": batch["time"], "class_labels": batch["class"]}


def denoising_loss(outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error of the predicted noise; the other half of the channels, a variance, is left alone."""
    predicted = pytree.tree_leaves(outputs)[0]
    return F.mse_loss(predicted[:, :4], batch["noise"])


DENOISING = Task(Noisy(), loss=denoising_loss, inputs=noised)


# -- planted scores ---------------------------------------------------------------------------------------------------


class Planted:
    """A proxy whose scores are given by the share of parameters that trains; remembers what it was shown."""

    name = "planted"
    higher_is_better = True
    ranks_unfreezing = True

    def __init__(self, better: Callable[[float], float] = lambda share: share) -> None:
        self.better = better
        self.seen: list[dict[str, Any]] = []

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        trains = sum(tensor.numel() for _, tensor in program.parameters() if tensor.requires_grad)
        share = trains / program.num_parameters()
        self.seen.append({"share": share, "batches": list(batches), "seed": seed, "stage": stage, "sid": program.sid})
        return float(self.better(share))


def plant_scores(monkeypatch: pytest.MonkeyPatch, **better: Callable[[float], float]) -> dict[str, Planted]:
    """Puts planted scores in the place of the proxies, and a time by parameters in the place of the predicted one."""

    def seconds(program: Program, **_: Any) -> float:
        trains = sum(tensor.numel() for _, tensor in program.parameters() if tensor.requires_grad)
        return (2 * program.num_parameters() + trains) / 3e9

    found = {name: Planted(rule) for name, rule in better.items()}
    monkeypatch.setattr(progc.schedule.costing, "predicted_seconds", seconds)
    monkeypatch.setattr(probing, "proxies_of", lambda names, mode: {name: found[name] for name in names})
    return found


def more(share: float) -> float:
    """The more trains, the better."""
    return share


def less(share: float) -> float:
    """The less trains, the better."""
    return -share
