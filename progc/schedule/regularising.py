"""Adaptive regularisation: how strongly each stage is regularised, and the passes that set it in a program.

Smaller networks need less regularisation (AutoProg, Li et al., CVPR 2022; EfficientNetV2, Tan and Le, ICML 2021). The
pass `set-drop` sets drop-path and dropout, which are in the train graph. The other strengths are for the data loader.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.schedule.point import Point

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.pipeline.base import Pass

PUBLISHED = Regularisation(drop_path=0.1, rand_augment=9, random_erasing=0.25)
"""Strengths of the last stage in AutoProg's training script."""

SCRIPT_STARTS: Mapping[str, float] = {"rand_augment": 0.5}
"""Strength of the first stage divided by that of the last one, in AutoProg's script; others start at 0."""

FLAG_STARTS: Mapping[str, float] = {"rand_augment": 0.0, "drop_path": -0.5, "random_erasing": -0.5}
"""The same for the default flags of AutoProg's program. A ramp that starts below 0 is clipped at 0."""

_FLOOR: Mapping[str, float] = {"rand_augment": 0.5}
"""Default mode: strength for a network of size 0 divided by that of the full network."""


def ramp(
    stages: int,
    final: Regularisation,
    mode: str = "default",
    *,
    sizes: Sequence[float] | None = None,
    starts: Mapping[str, float] = SCRIPT_STARTS,
) -> list[Regularisation]:
    """Returns the regularisation of every stage; the last one has `final`. Fields that `final` does not set stay unset.

    `reference`: every value rises linearly over the stages, and RandAugment's magnitude is rounded to the nearest
    integer, halves to the even one. For 4 stages and `PUBLISHED` the magnitudes are 4, 6, 7, 9 (the third is a rounding
    error below 7.5), drop-path 0, .033, .067, .1, and random erasing 0, .083, .167, .25.

    `default`: a value depends on the size s of the stage's network, because it is the size that makes it overfit. It is
    s times the final value, for RandAugment (1 + s) / 2 times. Stages of the same size have the same regularisation.

    Args:
        stages: number of stages, at least 1.
        final: strengths of the last stage.
        mode: `default` or `reference`.
        sizes: for `default`: sizes of the networks relative to the last one, above 0 and at most 1 (see `sizes_of`).
            None: equal steps, (k + 1) / stages.
        starts: for `reference`: first value divided by the last one, by field.

    Raises:
        InputError: the number of stages, the mode or the sizes are out of range.
    """
    if stages < 1:
        raise InputError(f"stages: expected an integer of at least 1, got {stages}")
    if mode not in ("default", "reference"):
        raise InputError(f"mode: expected default or reference, got {mode!r}")
    known = [(k + 1) / stages for k in range(stages)] if sizes is None else [float(size) for size in sizes]
    if len(known) != stages or not all(0 < size <= 1 for size in known):
        raise InputError(f"sizes: expected {stages} numbers above 0 and at most 1, one for each stage, got {known}")
    found = []
    for k in range(stages):
        values: dict[str, float] = {}
        for name, end in final.to_json().items():
            if k == stages - 1:
                values[name] = end
            elif mode == "reference":
                first = starts.get(name, 0.0)
                # In this order of operations, because some magnitudes are a rounding error away from a half.
                values[name] = _published(name, end, first + k * ((1 - first) / (stages - 1)))
            else:
                floor = _FLOOR.get(name, 0.0)
                values[name] = end * (floor + (1 - floor) * known[k])
        found.append(Regularisation(**values))
    return found


def _published(name: str, end: float, part: float) -> float:
    """One value of the published ramp: `part` of the last value, at least 0."""
    value = max(part * end, 0.0)
    return float(round(value)) if name == "rand_augment" else value


def sizes_of(points: Sequence[Point]) -> list[float]:
    """Returns the sizes of the networks of points relative to the last one: depth times width times side of the image.

    Depth is the number of blocks of all named chains, width the mean ratio of the named axes, and the side the square
    root of the image's area. A dimension that a point leaves out is as large as in the last one. Which blocks train
    does not matter. Sizes are above 0 and at most 1.
    """
    return [min(_relative(point, points[-1]), 1.0) for point in points]


def _relative(point: Point, full: Point) -> float:
    size = 1.0
    whole = sum(full.depths.values())
    if whole:
        size *= sum(point.depths.get(name, depth) for name, depth in full.depths.items()) / whole
    if full.widths:
        size *= math.fsum(point.widths.get(name, n) / n for name, n in full.widths.items()) / len(full.widths)
    if point.resolution and full.resolution:
        size *= math.sqrt(math.prod(point.resolution) / math.prod(full.resolution))
    return size


@dataclasses.dataclass(frozen=True)
class Setting:
    """Passes that set a stage's regularisation in its program, and notes on what could not be set."""

    passes: tuple[Pass, ...]
    notes: tuple[str, ...] = ()


def setting_for(regularisation: Regularisation, program: Program, *, linear: bool | None = None) -> Setting:
    """Returns the passes of `passes_for`, and a note for each rate that the network has no operation for."""
    from progc.passes.set_drop import SetDrop
    from progc.transforms.dropping import find_drops, is_linear
    from progc.transforms.dropping.ramp import shares

    drops = find_drops(program.graphs["train"])
    rises = is_linear(program) if linear is None else linear
    wanted: dict[str, float] = {}
    notes = []
    for kind, rate, words in (
        ("path", regularisation.drop_path, "drop-path"),
        ("dropout", regularisation.dropout, "dropout"),
    ):
        own = [drop for drop in drops if drop.kind == kind]
        if rate is None:
            continue
        if any(share.of_largest > 0 for share in shares(own)) or (own and kind == "path" and rises):
            wanted[kind] = rate
        elif rate > 0:
            notes.append(
                f"{words} {rate:g} is not set: the network was captured with a rate of 0 and has no such operation"
            )
    if not wanted:
        return Setting((), tuple(notes))
    return Setting((SetDrop(**wanted, ramp="linear" if rises and "path" in wanted else "keep"),), tuple(notes))


def passes_for(regularisation: Regularisation, program: Program, *, linear: bool | None = None) -> list[Pass]:
    """Returns the passes that set drop-path and dropout in a stage's program; none if the network has neither.

    Args:
        linear: whether drop-path is a linear ramp over the blocks, computed for the program's depth; otherwise rates
            keep their proportions. None: linear if the present rates are such a ramp. For a program that was cut out
            of another one, give what holds for the other one.
    """
    return list(setting_for(regularisation, program, linear=linear).passes)


def dropping_everywhere(program: Program) -> list[Pass]:
    """Returns passes that give drop-path to all blocks of chains in which some have it, at rates of a linear ramp.

    The first block of such a ramp has rate 0 and therefore no operation. A small network that consists of first blocks
    would otherwise never get drop-path. No passes if the rates are not such a ramp.
    """
    from progc.passes.set_drop import SetDrop
    from progc.transforms.dropping import find_drops, is_linear

    if not is_linear(program):
        return []
    largest = max(drop.rate for drop in find_drops(program.graphs["train"]) if drop.kind == "path")
    return [SetDrop(path=largest, ramp=ramp) for ramp in ("uniform", "linear")] if largest else []


def timm_options(regularisation: Regularisation) -> dict[str, dict[str, Any]]:
    """Returns keyword arguments for timm's `create_transform` and `Mixup`, by name, without unset fields."""
    from progc.models.timm import timm_options as options

    strengths = regularisation
    return options(rand_augment=strengths.rand_augment, random_erasing=strengths.random_erasing, mixup=strengths.mixup)
