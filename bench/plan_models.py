"""The schedules of bench/plan.py: points of published models, and small networks whose steps are measured."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import progc
from progc.data.task import Task
from progc.ir.program import Program
from progc.schedule import Point, Unfreeze


@dataclasses.dataclass(frozen=True)
class Plan:
    """A manual schedule.

    Attributes:
        label: for tables.
        points: its stages.
        linear: per stage image side, depth and share of blocks that train, for `token_linear`.
    """

    label: str
    points: tuple[Point, ...]
    linear: tuple[tuple[float, float, float], ...]


def plans(source: str) -> list[Plan]:
    """The schedules of a model whose bounds are published or follow from the same rule."""
    return _PLANS[source]


def _grown(sides: Sequence[int], depths: Sequence[dict[str, int]], totals: Sequence[int]) -> Plan:
    points = tuple(Point(depth, {}, (side, side)) for side, depth in zip(sides, depths, strict=True))
    linear = tuple((float(side), float(total), 1.0) for side, total in zip(sides, totals, strict=True))
    return Plan(f"{_list(sides)} px, {_list(totals)} blocks", points, linear)


def _unfrozen(sides: Sequence[int], levels: Sequence[int], scale: int) -> Plan:
    """`sides` of the latents; an image has `scale` times as many pixels a side."""
    points = tuple(
        Point({}, {}, (side, side), Unfreeze("interleave", level, 4)) for side, level in zip(sides, levels, strict=True)
    )
    linear = tuple((float(side), 1.0, level / 4) for side, level in zip(sides, levels, strict=True))
    return Plan(f"{_list([side * scale for side in sides])} px, level {_list(levels)} of 4", points, linear)


def _list(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


_OUTLOOK = [
    dict(zip(("network.0", "network.2", "network.3", "network.4"), split, strict=True))
    for split in ((2, 2, 4, 1), (4, 2, 5, 1), (4, 3, 6, 2), (4, 4, 8, 2))
]
_FLAT = [{"blocks": depth} for depth in (6, 8, 10, 12)]
_PLANS: dict[str, list[Plan]] = {
    "timm:deit_small_patch16_224": [_grown((128, 160, 192, 224), _FLAT, (6, 8, 10, 12))],
    "timm:volo_d1_224": [
        _grown((128, 160, 192, 224), _OUTLOOK, (9, 12, 15, 18)),
        _grown((96, 128, 192, 224), _OUTLOOK, (9, 12, 15, 18)),
    ],
    "diffusers:dit_xl": [
        _unfrozen((8, 16, 24, 32), (4, 4, 4, 4), 8),
        _unfrozen((32,) * 4, (1, 2, 3, 4), 8),
        _unfrozen((32,) * 4, (1, 1, 1, 4), 8),
        _unfrozen((8, 8, 16, 32), (1, 1, 1, 4), 8),
        _unfrozen((8, 16, 16, 32), (1, 1, 1, 4), 8),
    ],
    "diffusers:sd_unet": [
        _unfrozen((16, 32, 48, 64), (4, 4, 4, 4), 8),
        _unfrozen((64,) * 4, (1, 2, 3, 4), 8),
        _unfrozen((16, 16, 32, 64), (1, 1, 1, 4), 8),
    ],
}
SOURCES = tuple(_PLANS)


# -- measured ----------------------------------------------------------------------------------------------------------


def classifier() -> tuple[Program, Task]:
    """A vision transformer of 12 blocks and width 128 on 64x64 images, patches of 8."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(img_size=64, patch_size=8, embed_dim=128, depth=12, num_heads=4, num_classes=100)
    program = progc.capture(model, (torch.randn(2, 3, 64, 64),))
    return program, Task([(torch.randn(3, 64, 64), label) for label in range(64)])


def denoiser() -> tuple[Program, Task]:
    """A diffusion transformer of 8 blocks and width 96 on 16x16 latents, patches of 2."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=8, sample_size=16,
        patch_size=2, num_embeds_ada_norm=20,
    )  # fmt: skip
    example = {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([3, 11]),
        "class_labels": torch.tensor([1, 7]),
    }
    program = progc.capture(model, (), example)
    samples = [
        {"hidden_states": torch.randn(4, 16, 16), "timestep": 15 * index, "class_labels": index % 20}
        for index in range(64)
    ]

    def loss(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        sample = outputs[0] if isinstance(outputs, tuple) else outputs.sample
        return F.mse_loss(sample, batch["hidden_states"])

    return program, Task(samples, loss, inputs=lambda batch: ((), dict(batch)))


def candidates(chain: str, depths: Sequence[int], sides: Sequence[int], count: int, seed: int = 0) -> list[Point]:
    """Stage candidates of every kind: depth, resolution, which blocks train, drawn without repetition."""
    levels = (None, "interleave:1/4", "interleave:2/4", "prefix:1/4", "prefix:2/4", "suffix:2/4")
    places = list(itertools.product(depths, sides, levels))
    return [
        Point({chain: depth}, {}, (side, side), Unfreeze.parse(level) if level else None)
        for depth, side, level in random.Random(seed).sample(places, count)
    ]
