"""A verified run becomes a `Chain`."""

from __future__ import annotations

from collections.abc import Sequence

from progc.analysis.chains.describe import differences
from progc.analysis.chains.names import Container
from progc.analysis.chains.runs import Piece, Run
from progc.analysis.chains.table import Block, Chain
from progc.ir.program import MODES, Mode


def blocks_of(pieces: Sequence[Piece]) -> tuple[Block, ...]:
    """Pieces as the blocks that users and passes see."""
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


def carried_of(pieces: Sequence[Piece], run: Run) -> dict[Mode, tuple[tuple[str, ...], ...]]:
    """Names of the values at every boundary; `pieces` are those of the run."""
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


def shared_of(pieces: Sequence[Piece], run: Run) -> dict[Mode, tuple[str, ...]]:
    """Names of the outside values that blocks of the run read and that do not cross its boundaries."""
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
    container: Container, numbers: Sequence[int], pieces: Sequence[Piece], run: Run, alone: bool = True
) -> Chain:
    """The chain of a run among the numbered modules of a container; several in one container carry their numbers."""
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
