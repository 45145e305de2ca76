"""Runs of a few seconds whose stages are decided in training: by a one-shot and by a zero-shot search."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import progc
from progc.data.task import Task
from progc.ir.program import Program
from progc.schedule import Schedule
from progc.search.one_shot import copied
from progc.train.settings import Settings
from progc.train.trainer import Result, Trainer
from tests.train.running import samples

STAGES, STEPS, SEARCH = 3, 6, 3
"""Number of stages, steps of each, and how many of them a one-shot search takes."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.norm, self.drop = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.2)
        self.outer = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.drop(torch.relu(self.norm(self.inner(x)))))


class Net(nn.Module):
    """Running statistics, dropout, and images of any size."""

    def __init__(self, depth: int = 4, width: int = 6) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 10)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@functools.cache
def network() -> Program:
    torch.manual_seed(0)
    return progc.capture(Net(), (torch.zeros(4, 1, 8, 8),))


@functools.cache
def plan(strategy: str, mode: str = "default", decide: str = "training") -> Schedule:
    """Three stages of which the first two are open."""
    per_epoch = 64 // 16
    chosen: dict[str, Any] = {
        "one-shot": {
            "depths": "2,3,4" if mode == "reference" else "1,2,4", "resolutions": "6,8", "unfreeze": "none",
            "settings": {"epochs": SEARCH / per_epoch, "batches": 2, "time": "predicted"},
        },
        "zero-shot": {"depths": "none", "resolutions": "none", "unfreeze": "prefix:4"},
    }[strategy]  # fmt: skip
    task = Task(samples(64)) if decide == "before" else None
    return progc.plan(
        network(), strategy=strategy, mode=mode, decide=decide, stages=STAGES, widths="none", total=STAGES * STEPS,
        unit="steps", task=task, batch=16 if task else None, **chosen,
    )  # fmt: skip


def trainer(run: Path, schedule: Schedule, data: Any = None, **more: Any) -> Trainer:
    values = {
        "batch": 16, "compile": "eager", "ema": (0.5,), "clip": 1.0, "log_every": 1, "save_every": 1, "keep": None,
        "seed": 1, "lr": 3e-3, **{name: value for name, value in more.items() if name != "parallel"},
    }  # fmt: skip
    task = Task(samples(64) if data is None else data, validation=samples(20))
    # A first stage that is the whole network trains the tensors of the given program.
    parallel = {"parallel": more["parallel"]} if "parallel" in more else {}
    return Trainer(schedule, program=copied(network()), task=task, run=run, settings=Settings(**values), **parallel)


def train(run: Path, schedule: Schedule, data: Any = None, **more: Any) -> Result:
    return trainer(run, schedule, data, **more).fit()
