"""A sub-network of a program: blocks left out, axes cut down, in one step and with one lift."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.demand.steps import moves
from progc.errors import TargetError, VerifyError
from progc.ir.operations import op_name
from progc.ir.program import MODES, Program
from progc.lift.lift import Lift
from progc.lift.selection import strides
from progc.transforms.shrinking.depths import Kept
from progc.transforms.shrinking.narrowing import Narrowing, Units
from progc.transforms.shrinking.removal import shortened


@dataclasses.dataclass(frozen=True)
class Smaller:
    """A sub-network.

    Attributes:
        program: the sub-network.
        lift: how its tensors are made of the full program's.
        axes: names of the axes that got smaller; those of dropped blocks alone are not among them.
        notes: tensors that could not share storage, and numbers that a class of this size may compute anew.
    """

    program: Program
    lift: Lift
    axes: tuple[str, ...]
    notes: tuple[str, ...]


def shrunk(
    program: Program, kept: Sequence[Kept], sizes: Mapping[str, int], *, units: Units, storage: str, seed: int = 0
) -> Smaller:
    """The sub-network with these blocks and sizes.

    Args:
        kept: chains that get shorter.
        sizes: axis name to new size, for axes that get smaller.
        units: which units of an axis stay.
        storage: `share` or `copy`.
        seed: of the lift; nothing is drawn.

    Raises:
        TargetError: a block that others read inside, or sizes at which the network does not run.
    """
    from progc.transforms.width.rewriting import rewrite

    shorter = shortened(program, kept)
    narrowing = Narrowing(axes_of(program), sizes, shorter.vanished, units)
    entries = []
    rigid = _rigid(program) if storage == "share" else frozenset()
    for name, source in shorter.origin.items():
        entry = narrowing.entry(program, name, source, storage)
        viewable = strides(entry.dims) is not None and program.tied.get(source, source) not in rigid
        if entry.storage == "share" and any(entry.dims) and not viewable:
            entry = dataclasses.replace(entry, storage="copy")
        if not (entry.plain and name == source):
            entries.append(entry)
    removed = frozenset(name for name in program.tensors if name not in shorter.origin)
    lift = Lift(tuple(entries), seed=seed, removed=removed)
    made = lift.apply(program.tensors)
    tied = shorter.draft.tied
    tensors = {name: made[tied.get(name, name)] for name in shorter.origin}
    try:
        small = rewrite(shorter.draft, narrowing, tensors)
    except VerifyError as error:
        raise TargetError(f"shrink: the network does not run at these sizes: {error}") from error
    stays = set(shorter.origin.values())
    narrowed = tuple(name for name in sizes if any(span.tensor in stays for span in axes_of(program)[name].spans))
    last = [name for name in narrowed if sizes[name] == 1]
    notes = [f"{last[0]} has one unit left, and growth does not find an axis of size 1 again"] if last else []
    return Smaller(small, lift, narrowed, (*notes, *_notes(program, small, lift, storage)))


def _rigid(program: Program) -> frozenset[str]:
    """Tensors that a graph reads through a view of another shape, which units at a distance do not allow."""
    rigid: set[str] = set()
    for mode in MODES:
        held: dict[fx.Node, frozenset[str]] = {}
        for node in program.graphs[mode].nodes:
            inputs = node.all_input_nodes
            if node.op == "get_attr":
                held[node] = frozenset([str(node.target)])
            elif len(inputs) == 1 and inputs[0] in held and moves(node):
                held[node] = held[inputs[0]]
                if op_name(node) == "view":
                    rigid |= held[node]
    return frozenset(rigid)


def _notes(program: Program, small: Program, lift: Lift, storage: str) -> Iterator[str]:
    copied = [entry.name for entry in lift.tensors if entry.storage == "copy" and storage == "share"]
    if copied:
        more = f" and {len(copied) - 1} more" if len(copied) > 1 else ""
        yield (
            f"{copied[0]}{more} cannot share storage, since the units that stay are no view of the full tensor: they "
            "are copies, which progc.transforms.shrinking.written_back puts back"
        )
    for entry in lift.tensors:
        if any(entry.dims) and not small.specs[entry.name].persistent and entry.name not in small.tied:
            yield (
                f"{entry.name}, which no checkpoint holds, went from {list(program.tensors[entry.source].shape)} to "
                f"{list(small.tensors[entry.name].shape)}; a class that computes it from its size may differ"
            )
