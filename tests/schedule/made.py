"""Schedules made by hand: figures that can be checked by eye, no network and no search behind them."""

from __future__ import annotations

import dataclasses

from progc.schedule import (
    Candidate,
    Decision,
    ModelRef,
    Point,
    Regularisation,
    Schedule,
    Space,
    Stage,
    StageCost,
    Unfreeze,
)

MODEL = ModelRef("Net", "ab" * 32, 22_000_000, "net.py", "depth=12")


def cost(depth: int, side: int, *, batch: int = 64, trained: float = 1.0, seconds: float | None = None) -> StageCost:
    """Of a network of 12 blocks at 224 pixels whose cost is linear in blocks and in pixels: 4.6 GFLOPs forwards."""
    parameters = 22_000_000 * depth // 12
    forward = int(4.6e9 * depth / 12 * (side / 224) ** 2) * batch
    trainable = int(parameters * trained)
    activations = int(300e6 * depth / 12 * (side / 224) ** 2) * batch
    return StageCost(
        batch, parameters, trainable, forward, int(forward * (1 + trained)), activations, 4 * parameters, 4 * trainable,
        8 * trainable, seconds,
    )  # fmt: skip


def grown(seconds: tuple[float | None, ...] = (None,) * 4) -> Schedule:
    """Depth and resolution grow in four equal stages."""
    sizes = ((6, 128), (8, 160), (10, 192), (12, 224))
    points = [Point({"blocks": depth}, {}, (side, side)) for depth, side in sizes]
    strengths = [Regularisation(drop_path=k / 30, rand_augment=magnitude) for k, magnitude in enumerate((4, 6, 7, 9))]
    stages = tuple(
        Stage(k, points[k], 0.25, k, strengths[k], cost(*sizes[k], seconds=seconds[k])) for k in range(len(sizes))
    )
    space = Space(tuple(point.depths for point in points), (), tuple((side, side) for _, side in sizes))
    return Schedule(MODEL, "linear", stages, space, total=100)


def searched() -> Schedule:
    """A zero-shot search over resolution and interleaved unfreezing, three stages, one score that is NaN."""
    levels = tuple(Unfreeze("interleave", level, 4) for level in (1, 2, 4))
    sides = ((128, 128), (224, 224))
    candidates = tuple(
        Candidate(
            Point({}, {}, side, level),
            {"ntk": ntk, "zico": zico, "time": seconds},
            {"ntk": rank, "zico": 1, "time": place + 1},
            total,
        )
        for place, (side, level, ntk, zico, seconds, rank, total) in enumerate(
            (
                (sides[0], levels[0], -812.25, 1.5, 0.025, 2, 2.5),
                (sides[0], levels[1], -44.0, 1.5, 0.031, 1, 3.0),
                (sides[1], levels[0], float("nan"), 1.5, 0.1, 3, 5.0),
            )
        )
    )
    decisions = tuple(
        Decision(
            stage,
            candidates,
            0,
            "smallest sum of ranks, 2.5; the next is 3",
            {"batches": 2, "weights": {"time": 1.0}},
            4.0,
        )
        for stage in range(2)
    )
    points = [candidates[0].point, candidates[1].point, Point({}, {}, sides[1], levels[2])]
    shares = (0.25, 0.25, 0.5)
    stages = tuple(
        Stage(k, point, shares[k], cost=cost(12, (128, 128, 224)[k], trained=float(levels[k].share)))
        for k, point in enumerate(points)
    )
    return Schedule(MODEL, "zero-shot", stages, Space((), (), sides, levels), seed=7, decisions=decisions)


def without_costs() -> Schedule:
    """As `grown`, nothing counted."""
    made = grown()
    return dataclasses.replace(made, stages=tuple(dataclasses.replace(stage, cost=None) for stage in made.stages))
