"""What a run would do, from shapes alone: stages, memory, checkpoints, compilations. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from progc.costs import count
from progc.emit.pieces import cut
from progc.emit.region import Regions
from progc.emit.stage_module import learning
from progc.program import Program
from progc.schedule.running import outlines
from progc.schedule.schedule import Schedule
from progc.train.settings import Settings


def described(
    program: Program, schedule: Schedule, settings: Settings, source: Program | None = None
) -> list[dict[str, Any]]:
    """One object for each stage, plain JSON data; bytes are of this run's precision and optimizer (two moments)."""
    starts = [*schedule.starts(settings.total), settings.total or schedule.total]
    found = []
    for stage, outline in zip(schedule.stages, outlines(program, schedule, source=source), strict=True):
        cost = count(outline, batch=max(settings.batch // settings.accumulate, 1))
        copies = 1 + len(settings.ema)
        found.append(
            {
                "stage": stage.index,
                "start": starts[stage.index],
                "stop": starts[stage.index + 1],
                "unit": schedule.unit,
                "point": str(stage.point),
                "parameters": cost.parameters,
                "trainable": cost.trainable,
                "flops": cost.flops * settings.accumulate,
                "memory": cost.memory + cost.parameter_bytes * len(settings.ema),
                "checkpoint": cost.parameter_bytes * copies + cost.optimizer_bytes,
                "compiles": 0 if settings.compile == "eager" else compiles(outline, settings.compile),
            }
        )
    return found


def compiles(outline: Program, how: str) -> int:
    """How many functions the train graph of a stage compiles, from its shapes."""
    if how == "whole":
        return 1
    regions = Regions(outline, "train", lift_rates=True)
    learns = learning(outline, "train")
    calls = [regions.call(piece, learns) for piece in cut(outline, "train")]
    return len({call.region.key for call in calls if call.region.computes})


def table(found: Sequence[Mapping[str, Any]], schedule: Schedule) -> str:
    """The stages as aligned text."""
    rows = [("stage", schedule.unit, "params", "trains", "GFLOPs/step", "memory", "checkpoint", "compiles", "point")]
    for item in found:
        rows.append(
            (
                str(item["stage"]),
                f"{item['start']}-{item['stop']}",
                f"{item['parameters'] / 1e6:.2f} M",
                f"{item['trainable'] / max(item['parameters'], 1):.0%}",
                f"{item['flops'] / 1e9:.2f}",
                _bytes(item["memory"]),
                _bytes(item["checkpoint"]),
                str(item["compiles"]),
                item["point"],
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == len(widths) - 1 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _bytes(value: int) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
