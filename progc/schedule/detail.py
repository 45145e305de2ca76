"""Prints one stage of a schedule in full: sizes, passes that make its network, regularisation, costs, the search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from progc.errors import InputError
from progc.schedule.point import Point, size_text
from progc.schedule.schedule import Schedule
from progc.schedule.stage import BASES, Stage, time_shares
from progc.schedule.text import decision_text, figure, memory, pairs, percent

FULL_SIZE = "as in the full network"
FROM_FULL = "from the full"


def stage_text(schedule: Schedule, index: int) -> str:
    """Returns the stage `index` as text.

    Raises:
        InputError: there is no such stage.
    """
    stage = _stage(schedule, index)
    point = stage.point
    rows = [("stage", f"{index} of {len(schedule.stages)}, {percent(stage.share)} of the run")]
    if schedule.total is not None:
        starts = [*schedule.starts(), schedule.total]
        rows.append((schedule.unit, f"{starts[index]} to {starts[index + 1] - 1}"))
    rows += [
        ("resolution", f"{size_text(point.resolution)} pixels" if point.resolution else FULL_SIZE),
        ("depth", _sizes(point.depths)),
        ("width", _sizes(point.widths)),
        ("trains", _trains(point)),
        ("sid", "none" if stage.sid is None else f"row {stage.sid}"),
        ("regularisation", str(stage.regularisation) or "not set by the plan"),
        (FROM_FULL, of_full(point)),
    ]
    if index:
        rows.append((f"from stage {index - 1}", from_before(point, schedule.stages[index - 1].point)))
    cost = stage.cost
    batch = stage.batch or (None if cost is None else cost.batch)
    if batch is not None:
        rows.append(("batch", f"{batch} samples per step"))
    if cost is not None:
        rows += [
            ("parameters", f"{cost.parameters:,}, of which {cost.trainable:,} train"),
            ("forward", f"{figure(cost.forward_flops / 1e9)} GFLOPs per step"),
            ("backward", f"{figure(cost.backward_flops / 1e9)} GFLOPs per step"),
            (
                "memory",
                f"{memory(cost.memory)}: activations {memory(cost.activation_bytes)}, parameters "
                f"{memory(cost.parameter_bytes)}, gradients {memory(cost.gradient_bytes)}, optimizer "
                f"{memory(cost.optimizer_bytes)}",
            ),
            ("seconds", "not measured" if cost.seconds is None else f"{figure(cost.seconds)} per step, measured"),
        ]
        shares = {basis: time_shares(schedule.stages, basis, schedule.unit) for basis in BASES}
        known = [f"{percent(found[index])} {basis}" for basis, found in shares.items() if found is not None]
        if known:
            rows.append(("share of time", ", ".join(known)))
    parts = [pairs(rows, whole=(FROM_FULL, f"from stage {index - 1}"))]  # not wrapped: these are copied
    parts += [decision_text(decision) for decision in schedule.decisions if decision.stage == index]
    return "\n\n".join(parts)


def stage_json(schedule: Schedule, index: int) -> dict[str, Any]:
    """Returns the stage `index` as JSON, with its passes and the search.

    Raises:
        InputError: there is no such stage.
    """
    stage = _stage(schedule, index)
    return {
        **stage.to_json(),
        "passes": {
            "of_full": of_full(stage.point),
            "from_before": from_before(stage.point, schedule.stages[index - 1].point) if index else None,
        },
        "decisions": [decision.to_json() for decision in schedule.decisions if decision.stage == index],
    }


def _stage(schedule: Schedule, index: int) -> Stage:
    number = len(schedule.stages)
    if not 0 <= index < number:
        known = f"stages 0 to {number - 1}" if number > 1 else "stage 0 only"
        raise InputError(f"there is no stage {index}; the plan has {known}")
    return schedule.stages[index]


def of_full(point: Point) -> str:
    """Returns the passes from the full network to a point's network and trainable set, as pipeline text."""
    from progc.pipeline.base import to_text

    return ",".join(filter(None, (to_text(point.shrinking()), _freeze(point)))) or "nothing"


def from_before(point: Point, before: Point) -> str:
    """Returns the passes from the network of an earlier point to that of this one, as pipeline text."""
    from progc.pipeline.base import to_text

    frozen = _freeze(point) if point.unfreeze != before.unfreeze else ""
    return ",".join(filter(None, (to_text(point.growing(before)), frozen))) or "nothing"


def _freeze(point: Point) -> str:
    """The freeze pass; `...` stands for the number of blocks of a prefix or suffix, which depends on the network."""
    from progc.pipeline.base import to_text

    level = point.unfreeze
    if level is None or level.full or level.shape == "interleave":
        return "" if level is None else to_text([level.freeze(0, measure=True)])
    return "freeze{prefix=... stem=true}" if level.shape == "prefix" else "freeze{suffix=...}"


def _trains(point: Point) -> str:
    level = point.unfreeze
    if level is None or level.full:
        return "everything"
    if level.shape == "interleave":
        return f"the first {level.level} of every {level.of} blocks, and everything outside of blocks ({level})"
    part = f"{level.of - level.level}/{level.of} of the blocks"
    if level.shape == "prefix":
        return f"everything except the first {part} and what comes before and between them ({level})"
    return f"everything except the last {part} ({level})"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or FULL_SIZE
