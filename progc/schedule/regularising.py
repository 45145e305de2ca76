"""Adaptive regularisation: how strongly each stage is regularised, and the passes that set it in a program.

Smaller networks need less (AutoProg, Li et al., CVPR 2022; Tan and Le 2021). What the train graph holds (drop-path,
dropout) is set by `set-drop`; the rest is data for whoever loads samples.
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
"""The last stage of the published script."""

SCRIPT_STARTS: Mapping[str, float] = {"rand_augment": 0.5}
"""The first stage over the last one in the published script; what is not named starts at 0."""

FLAG_STARTS: Mapping[str, float] = {"rand_augment": 0.0, "drop_path": -0.5, "random_erasing": -0.5}
"""The same for the published program's own defaults. A ramp that starts below 0 is clipped there."""

_FLOOR: Mapping[str, float] = {"rand_augment": 0.5}
"""Default mode: strength for a network of size 0, over the full one's."""


def ramp(
    stages: int,
    final: Regularisation,
    mode: str = "default",
    *,
    sizes: Sequence[float] | None = None,
    starts: Mapping[str, float] = SCRIPT_STARTS,
) -> list[Regularisation]:
    """The regularisation of every stage; the last one has `final`, and what `final` leaves open stays open.

    `reference`: every value rises linearly over the stages from its start to its end, RandAugment's magnitude rounded
    down; for 4 stages and `PUBLISHED`: magnitudes 4, 6, 7, 9, drop-path 0, .033, .067, .1, erasing 0, .083, .167, .25.

    `default`: a value follows the size s of the stage's network instead, since it is the size that over-fits: s times
    the final value, for RandAugment (1 + s) / 2 times. Stages of one size are regularised alike.

    Args:
        stages: number of stages, at least 1.
        sizes: with `default`: sizes of the networks relative to the last one, above 0 and at most 1 (`sizes_of`);
            None: equal steps, (k + 1) / stages.
        starts: with `reference`: first value over last one, by field.

    Raises:
        InputError: a number of stages, a mode or sizes that are none.
    """
    if stages < 1:
        raise InputError(f"stages: a schedule has 1 stage or more, not {stages}")
    if mode not in ("default", "reference"):
        raise InputError(f"mode is default or reference, not {mode!r}")
    known = [(k + 1) / stages for k in range(stages)] if sizes is None else [float(size) for size in sizes]
    if len(known) != stages or not all(0 < size <= 1 for size in known):
        raise InputError(f"sizes: expected {stages} numbers above 0 and at most 1, one for each stage, not {known}")
    found = []
    for k in range(stages):
        values: dict[str, float] = {}
        for name, end in final.to_json().items():
            if k == stages - 1:
                values[name] = end
            elif mode == "reference":
                values[name] = _published(name, end, starts.get(name, 0.0), k / (stages - 1))
            else:
                floor = _FLOOR.get(name, 0.0)
                values[name] = end * (floor + (1 - floor) * known[k])
        found.append(Regularisation(**values))
    return found


def _published(name: str, end: float, start: float, part: float) -> float:
    """One value of the published ramp, `part` of the way from first to last stage."""
    value = max(end * (start + (1 - start) * part), 0.0)
    return float(math.floor(value + 1e-9)) if name == "rand_augment" else value


def sizes_of(points: Sequence[Point]) -> list[float]:
    """Sizes of the networks of these points relative to the last one: depth times width times side of the image.

    Depth is the number of blocks of all chains that are named, width the mean of the ratios of the axes that are,
    the side the square root of the area. What a point leaves out is as in the last one. Which blocks train does not
    count: all of them compute. Above 0, at most 1.
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
    """Passes that set a stage's regularisation in its program, and what could not be set, for people."""

    passes: tuple[Pass, ...]
    notes: tuple[str, ...] = ()


def setting_for(regularisation: Regularisation, program: Program, *, linear: bool | None = None) -> Setting:
    """As `passes_for`, with a note on each rate that the network has no place for."""
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
            notes.append(f"{words} {rate:g} is not set: the network was captured with a rate of 0 and has none")
    if not wanted:
        return Setting((), tuple(notes))
    return Setting((SetDrop(**wanted, ramp="linear" if rises and "path" in wanted else "keep"),), tuple(notes))


def passes_for(regularisation: Regularisation, program: Program, *, linear: bool | None = None) -> list[Pass]:
    """The passes that set drop-path and dropout of a stage's program; none where the network drops nothing.

    Args:
        linear: whether drop-path is a linear ramp over the blocks, made anew for the program's depth; otherwise rates
            keep their proportions. None: linear where rates are such a ramp as they are. A program that was
            cut out of another is better told what that one is.
    """
    return list(setting_for(regularisation, program, linear=linear).passes)


def dropping_everywhere(program: Program) -> list[Pass]:
    """Passes that give drop-path to all blocks of chains in which some have it, at the rates of a linear ramp.

    The first block of such a ramp has rate 0, hence no operation; a small network that is made of first blocks alone
    would otherwise have lost drop-path for good. None where rates are no such ramp.
    """
    from progc.passes.set_drop import SetDrop
    from progc.transforms.dropping import find_drops, is_linear

    if not is_linear(program):
        return []
    largest = max(drop.rate for drop in find_drops(program.graphs["train"]) if drop.kind == "path")
    return [SetDrop(path=largest, ramp=ramp) for ramp in ("uniform", "linear")] if largest else []


def timm_options(regularisation: Regularisation) -> dict[str, dict[str, Any]]:
    """Keyword arguments for timm's `create_transform` and `Mixup` by the names of these; what is open is left out."""
    from progc.models.timm import timm_options as options

    strengths = regularisation
    return options(rand_augment=strengths.rand_augment, random_erasing=strengths.random_erasing, mixup=strengths.mixup)
