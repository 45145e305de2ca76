"""Reports what freezing saves, in numbers and words, and what an unfrozen stem costs."""

from __future__ import annotations

import dataclasses

from torch import fx

from progc.analysis.costs.cost import StageCost
from progc.analysis.costs.counting import NotCounted, count
from progc.errors import first_of
from progc.ir import norms as norm_statistics
from progc.ir.operations import mutates
from progc.ir.program import Program
from progc.transforms.freezing.blocks import Blocks
from progc.transforms.freezing.setting import can_train, fixed_parameters, set_trainable, trainable

_SCALES = (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))
_BYTES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


@dataclasses.dataclass(frozen=True)
class Report:
    """Numbers for the history, and notes for the user."""

    counts: dict[str, int]
    notes: tuple[str, ...]


def report(program: Program, blocks: Blocks, *, measure: bool) -> Report:
    """Returns what one training step of the program costs, compared with the same program with everything trainable.

    FLOPs count a multiply-add as two operations; sizes are in bytes.

    Args:
        program: with its trainable set.
        blocks: its blocks.
        measure: whether to count. Otherwise the report has only the warning about the stem, without figures.
    """
    alive = _stem_keeps_alive(program, blocks)
    if not measure:
        return Report({}, (_warning(alive),) if alive else ())
    everything = {name for name, tensor in program.parameters() if can_train(tensor)} - fixed_parameters(program)
    try:
        now, full = count(program), count(set_trainable(program, everything))
        closed = count(set_trainable(program, trainable(program).keys() - blocks.stem)) if alive else None
    except NotCounted as reason:
        return Report({}, (f"savings were not counted: {reason}", *((_warning(alive),) if alive else ())))
    counts = {}
    for what, field in _FIELDS:
        counts[what] = getattr(now, field)
        counts[f"{what} with all trainable"] = getattr(full, field)
    notes = [_sentence(now, full)]
    if alive:
        notes.append(_warning(alive, now, closed))
    return Report(counts, tuple(notes))


_FIELDS = (
    ("backward FLOPs", "backward_flops"),
    ("activation bytes", "activation_bytes"),
    ("Adam bytes", "optimizer_bytes"),
)


def still_written(program: Program) -> tuple[str, ...]:
    """Returns a note about buffers that modules without trainable parameters still update in train mode, if any.

    Frozen normalisations do not update theirs, but a module of the user may update buffers in operations of its own.
    """
    graph, training = program.graphs["train"], trainable(program)
    known = {node for _, nodes in norm_statistics.norms(graph) for node in nodes}
    names = []
    for node in graph.nodes:
        target = node.args[0] if node.op == "call_function" and node.args else None
        if node in known or not mutates(node) or not isinstance(target, fx.Node) or target.op != "get_attr":
            continue
        owner = str(target.target).rpartition(".")[0]
        own = [name for name, _ in program.parameters() if owner and name.startswith(owner + ".")]
        if own and not any(name in training for name in own):
            names.append(str(target.target))
    shown = ", ".join(dict.fromkeys(names))
    return (f"frozen modules still update their buffers in train mode: {shown}",) if names else ()


def _stem_keeps_alive(program: Program, blocks: Blocks) -> list[str]:
    """Trainable parameters of the stem, if the block after it is frozen: only they need the backward to continue."""
    training = trainable(program)
    if not blocks.units or any(name in training for name in blocks.units[0].parameters):
        return []
    if not training.keys() - blocks.stem:
        return []  # the stem is the part that trains
    return [name for name in training if name in blocks.stem]


def _sentence(now: StageCost, full: StageCost) -> str:
    return (
        f"per step, compared with everything trainable: backward {_flops(now.backward_flops)} of "
        f"{_flops(full.backward_flops)} ({_share(now.backward_flops, full.backward_flops)}), saved "
        f"activations {_size(now.activation_bytes)} of {_size(full.activation_bytes)} "
        f"({_share(now.activation_bytes, full.activation_bytes)}), Adam's moments "
        f"{_size(now.optimizer_bytes)} of {_size(full.optimizer_bytes)} "
        f"({_share(now.optimizer_bytes, full.optimizer_bytes)})"
    )


def _warning(alive: list[str], now: StageCost | None = None, closed: StageCost | None = None) -> str:
    names = first_of(alive, 3)
    text = f"warning: the stem trains ({names}), so the backward still runs through the frozen blocks after it"
    if now is not None and closed is not None:
        flops, size = now.backward_flops - closed.backward_flops, now.activation_bytes - closed.activation_bytes
        text += (
            f": {_flops(flops)} of the backward ({_share(flops, now.backward_flops)}) and {_size(size)} "
            f"of activations ({_share(size, now.activation_bytes)}) are needed for the stem alone"
        )
    return text + "; stem=true freezes it"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _flops(count: int) -> str:
    return next((f"{count / scale:.3g} {unit}FLOP" for unit, scale in _SCALES if count >= scale), f"{count} FLOP")


def _size(count: int) -> str:
    return next((f"{count / scale:.3g} {unit}" for unit, scale in _BYTES if count >= scale), f"{count} B")
