"""Describes a run before it begins: the steps, size, cost, memory, checkpoint and compiles of each stage."""

from __future__ import annotations

import dataclasses
from typing import Any

from progc.files.text import aligned
from progc.ir.program import Program
from progc.runs.opening import Opened, slots


def described(run: Opened) -> dict[str, Any]:
    """Returns the stages of a run as JSON data.

    FLOPs of a step are for the whole batch of the stage. Memory (bytes) is for a micro-batch (`accumulate`) of one
    process, with blocks recomputed if the settings ask for it. Both are None where the graph of a stage does not run on
    shapes alone. `steps_per_epoch` of the run is None where stages differ in it.

    Raises:
        InputError: there are fewer samples than one batch.
        TargetError, NotLosslessError: the network cannot grow from one stage to the next.
    """
    from progc.runs.recomputing import kept
    from progc.schedule.pace import Pace
    from progc.schedule.stage_programs import StagePrograms

    settings, schedule = run.settings, run.schedule
    pace = Pace.of(schedule, settings.batch, len(run.task.samples), settings.total)
    moments = slots(run.optimizer)
    programs = StagePrograms.of(run.program, schedule, run.inits)
    programs.check(run.source)
    stages = []
    for stage in schedule.stages:
        program = programs.outline(stage.index)
        trainable = sum(tensor.numel() for _, tensor in program.parameters() if tensor.requires_grad)
        cost = stage.cost
        memory = None
        if cost is not None:
            fixed = cost.parameter_bytes + cost.gradient_bytes + moments * 4 * trainable
            again = settings.recompute and settings.compile != "whole"  # one whole graph has no blocks
            activations = kept(program, cost.batch).total if again else cost.activation_bytes
            memory = fixed + activations // settings.accumulate
        stages.append(
            {
                "stage": stage.index,
                "begin": pace.start(stage.index),
                "steps": pace.steps[stage.index],
                "batch": pace.batches[stage.index],
                "steps_per_epoch": pace.per_epoch[stage.index],
                "resolution": list(stage.point.resolution) if stage.point.resolution is not None else None,
                "parameters": program.num_parameters(),
                "trainable": trainable,
                "flops": None if cost is None else cost.flops,
                "memory": memory,
                "checkpoint": checkpoint_bytes(program, len(settings.ema), moments, trainable),
                "compiles": compiles(program, settings.compile),
            }
        )
    return {
        "stages": stages,
        "unit": schedule.unit,
        "total": settings.total,
        "steps_per_epoch": pace.per_epoch[0] if len(set(pace.per_epoch)) == 1 else None,
        "steps": pace.total,
        "speedup": schedule.speedup,
        "samples": len(run.task.samples),
        "settings": {**dataclasses.asdict(settings), "ema": list(settings.ema)},
        "notes": list(run.notes),
    }


def checkpoint_bytes(program: Program, averages: int, kept: int, trainable: int) -> int:
    """Returns the bytes of a checkpoint: weights, averaged copies and optimizer state, without headers.

    Args:
        program: program of the stage.
        averages: number of averaged copies; 16-bit floats are averaged in 32 bits.
        kept: tensors that the optimizer keeps per parameter, each f32.
        trainable: number of trainable parameters.
    """
    held = list(program.persistent().values())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
    average = sum(t.numel() * (max(4, t.element_size()) if t.is_floating_point() else t.element_size()) for t in held)
    return weights + averages * average + kept * 4 * trainable


def compiles(program: Program, how: str) -> int:
    """Returns how many functions the train graph of a stage compiles, computed from shapes."""
    from progc.emit.pieces import cut
    from progc.emit.region import Regions
    from progc.emit.stage_module import learning

    if how != "regions":
        return int(how == "whole")
    regions = Regions(program, "train", lift_rates=True)
    learns = learning(program, "train")
    calls = [regions.call(piece, learns) for piece in cut(program, "train")]
    return len({call.region.key for call in calls if call.region.computes})


def text(found: dict[str, Any]) -> str:
    """Returns the table that is printed."""
    batches = [stage["batch"] for stage in found["stages"]]
    vary = len(set(batches)) > 1
    head = ["stage", "steps", *(["batch"] if vary else []), "size", "parameters", "trainable", "FLOPs/step", "memory"]
    rows = [(*head, "checkpoint", "compiles")]
    for stage in found["stages"]:
        size = "x".join(map(str, stage["resolution"])) if stage["resolution"] else "-"
        share = f"{stage['trainable'] / stage['parameters']:.0%}"
        flops = "?" if stage["flops"] is None else _short(stage["flops"], 1000, ("", "k", "M", "G", "T", "P"))
        memory = "?" if stage["memory"] is None else size_text(stage["memory"])
        rows.append(
            (
                str(stage["stage"]),
                f"{stage['steps']:,}",
                *([str(stage["batch"])] if vary else []),
                size,
                f"{stage['parameters']:,}",
                share,
                flops,
                memory,
                size_text(stage["checkpoint"]),
                str(stage["compiles"]),
            )  # fmt: skip
        )
    lines = [aligned(rows, right=True)]
    settings = found["settings"]
    length = f"{found['steps']:,} steps"
    if found["unit"] == "epochs":
        every = found["steps_per_epoch"]
        epochs = f"{found['total']} epochs" + ("" if every is None else f" of {every:,} steps")
        length = f"{epochs}, {length}"
    batch = f"batches of {', '.join(map(str, batches))}" if vary else f"batch {batches[0]}"
    lines += ["", f"{length}; {found['samples']:,} samples, {batch}"]
    if found["speedup"]:
        lines.append(f"{found['speedup']:.2f} times less compute than training the full network for all steps")
    kept = settings["keep"]
    lines.append(
        f"checkpoints: {'all are kept' if kept is None else f'the last {kept} and the best are kept'}, up to "
        f"{size_text(((kept or 0) + 1) * max(stage['checkpoint'] for stage in found['stages']))}"
        + (" and more" if kept is None else "")
    )
    return "\n".join(lines)


def size_text(count: int) -> str:
    """Formats a number of bytes: `3.4 MiB`."""
    return _short(count, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _short(count: float, base: int, units: tuple[str, ...]) -> str:
    place = 0
    while count >= base and place < len(units) - 1:
        count, place = count / base, place + 1
    return f"{count:.0f}{units[place]}" if place == 0 or count >= 100 else f"{count:.1f}{units[place]}"
