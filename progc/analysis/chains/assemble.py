"""Turns a verified run into a `Chain`, and describes what differs between its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from progc.analysis.chains.names import Container
from progc.analysis.chains.runs import Run, RunPiece
from progc.analysis.chains.table import Block, Chain
from progc.ir.program import MODES, Mode


def blocks_of(pieces: Sequence[RunPiece]) -> tuple[Block, ...]:
    """Returns pieces as the blocks that users and passes see."""
    return tuple(
        Block(
            piece.label,
            piece.index,
            piece.tensors,
            piece.patterns,
            {mode: tuple(node.name for node in piece.forms[mode].nodes) for mode in MODES},
        )
        for piece in pieces
    )


def carried_of(pieces: Sequence[RunPiece], run: Run) -> dict[Mode, tuple[tuple[str, ...], ...]]:
    """Returns the names of the values at every boundary; `pieces` are those of the run."""
    carried: dict[Mode, tuple[tuple[str, ...], ...]] = {}
    for mode in MODES:
        rows = [
            tuple(piece.forms[mode].slots[slot].name for slot in head)
            for piece, head in zip(pieces, run.heads[mode], strict=True)
        ]
        last = pieces[-1].forms[mode]
        rows.append(tuple(last.at(place).name for place in run.tails[mode]))
        carried[mode] = tuple(rows)
    return carried


def shared_of(pieces: Sequence[RunPiece], run: Run) -> dict[Mode, tuple[str, ...]]:
    """Returns the names of outside values that blocks of the run read and that do not cross its boundaries."""
    return {
        mode: tuple(
            dict.fromkeys(
                slot.name
                for piece, head in zip(pieces, run.heads[mode], strict=True)
                for k, slot in enumerate(piece.forms[mode].slots)
                if k not in head
            )
        )
        for mode in MODES
    }


def assemble(
    container: Container, numbers: Sequence[int], pieces: Sequence[RunPiece], run: Run, alone: bool = True
) -> Chain:
    """Returns the chain of a run of numbered modules of a container.

    With `alone` false, the container holds several chains, and the name of the chain includes the block numbers.
    """
    members = pieces[run.start : run.stop]
    low, high = members[0].index, members[-1].index
    name = container.name if alone else f"{container.name}[{low}]" if low == high else f"{container.name}[{low}-{high}]"
    return Chain(
        name=name,
        kind="residual",
        period=run.period,
        blocks=blocks_of(members),
        siblings=len(numbers),
        pattern=f"{container.stem}#.",
        differences=differences(members, run.period),
        carried=carried_of(members, run),
        shared=shared_of(members, run),
        later=tuple(container.path(number) for number in numbers if number > high),
    )


def differences(pieces: Sequence[RunPiece], period: int) -> tuple[str, ...]:
    """Returns one line for each difference between the blocks, with values in block order."""
    lines: list[str] = []
    for what in dict.fromkeys(what for piece in pieces for what, _ in piece.forms["train"].noise):
        rates = [_rates([rate for label, rate in piece.forms["train"].noise if label == what]) for piece in pieces]
        if len(set(rates)) > 1:
            lines.append(f"{what}: {', '.join(rates)}")
    shifts = [_shift([value for what, value in piece.forms["eval"].soft if what == "window shift"]) for piece in pieces]
    if len(set(shifts)) > 1:
        lines.append(f"window shift: {', '.join(shifts)}")
    lines += _scalars(pieces, period)
    lines += _own_tensors(pieces)
    return tuple(dict.fromkeys(lines))


def _rates(rates: Sequence[float]) -> str:
    return "/".join(dict.fromkeys(_number(rate) for rate in rates)) or "none"


def _shift(amounts: Sequence[Any]) -> str:
    rows = [amount if isinstance(amount, (list, tuple)) else [amount] for amount in amounts]
    sizes = [abs(int(step)) for row in rows for step in row]
    return "/".join(dict.fromkeys(str(size) for size in sizes)) or "0"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scalars(pieces: Sequence[RunPiece], period: int) -> list[str]:
    """Compares soft literals of the eval graph between corresponding blocks."""
    lines: list[str] = []
    for phase in range(min(period, len(pieces))):
        group = pieces[phase::period]
        for column in zip(*(piece.forms["eval"].soft for piece in group), strict=True):
            what, values = column[0][0], [_number(value) for _, value in column]
            if what != "window shift" and len(set(values)) > 1:
                lines.append(f"{what}: {', '.join(values)}")
    return lines


def _own_tensors(pieces: Sequence[RunPiece]) -> list[str]:
    """Lists tensors that only some blocks have (mask buffers)."""
    lines: list[str] = []
    if len({piece.kind for piece in pieces}) > 1:  # the blocks of a period have different classes
        return lines
    every = dict.fromkeys(pattern for piece in pieces for pattern in piece.patterns)
    for pattern in every:
        holders = [str(piece.index) for piece in pieces if pattern in piece.patterns]
        if len(holders) < len(pieces):
            local = pattern.partition("#")[2].lstrip(".") or pattern
            lines.append(f"{local}: only in {', '.join(holders)}")
    return lines
