"""A network, its schedule and its samples for runs of a few seconds: growth in depth and width, freezing, averages."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import progc
from progc.data.task import Task
from progc.ir.program import Program
from progc.schedule import ModelRef, Point, Regularisation, Schedule, Space, Stage, Unfreeze
from progc.train.settings import Settings
from progc.train.trainer import Result, Trainer

BATCH = 16
STEPS = 3
"""Of every stage."""


def samples(count: int) -> Any:
    """Handwritten digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    return torch.utils.data.TensorDataset(images[:count], torch.from_numpy(labels)[:count].long())


class Interrupted:
    """Samples that call something when the n-th of them is asked for."""

    def __init__(self, inner: Any, at: int, call: Any) -> None:
        self.inner, self.left, self.call = inner, at, call

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            self.call()
        return self.inner[index]


def model() -> nn.Module:
    """A vision transformer with dropout and stochastic depth: random numbers of training count."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=4, num_heads=4, num_classes=10,
        drop_path_rate=0.2, proj_drop_rate=0.1,
    )  # fmt: skip


@functools.cache
def program() -> Program:
    """The full network; no stage of the schedule trains its tensors, since the first one is smaller."""
    return progc.capture(model(), (torch.zeros(4, 1, 8, 8),))


@functools.cache
def schedule(rules: tuple[Any, ...] = ()) -> Schedule:
    """Four stages: small and half frozen, deeper, wide and frozen, whole."""
    points = [
        Point({"blocks": 1}, {"width": 16}, unfreeze=Unfreeze("prefix", 1, 2)),
        Point({"blocks": 2}, {"width": 16}),
        Point({"blocks": 4}, {"width": 16}, unfreeze=Unfreeze("prefix", 1, 2)),
        Point({"blocks": 4}, {"width": 32}),
    ]
    regular = [Regularisation(drop_path=rate) for rate in (0.0, 0.05, 0.1, 0.2)]
    made = tuple(Stage(k, point, 1 / len(points), None, regular[k]) for k, point in enumerate(points))
    total = STEPS * len(points)
    return Schedule(ModelRef.of(program()), "linear", made, Space(), total=total, unit="steps", rules=rules)


def trainer(run: Path, data: Any = None, full: Program | None = None, **more: Any) -> Trainer:
    """A run of the four stages over 72 digits."""
    keywords = {name: more.pop(name) for name in ("parallel", "optimizer") if name in more}
    rules, validation = more.pop("rules", ()), more.pop("validation", None)
    values = {
        "batch": BATCH, "compile": "eager", "ema": (0.9,), "clip": 1.0, "log_every": 2, "save_every": 2, "keep": None,
        "validate_every": 5, "seed": 1, **more,
    }  # fmt: skip
    task = Task(samples(72) if data is None else data, validation=validation or samples(20))
    return Trainer(
        schedule(rules), program=full or program(), task=task, run=run, settings=Settings(**values), **keywords
    )


def train(run: Path, data: Any = None, full: Program | None = None, **more: Any) -> Result:
    """Trains until the end, or until the samples end the run."""
    return trainer(run, data, full, **more).fit()


def lines(run: Path) -> list[dict[str, Any]]:
    """Metrics without what was measured."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "measured"} for line in found]


def outcome(run: Path) -> dict[str, Tensor]:
    """Everything that the last checkpoint of a run holds in tensors."""
    from progc.checkpoints import latest

    found = latest(run)
    assert found is not None
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(found.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
