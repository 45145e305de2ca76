"""Makes a sub-network of a program: removes blocks and narrows axes, in one step and with one lift.

The smaller sizes of axes determine the entries of every tensor (`Narrowing`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import fx

from progc.analysis.axes import AxisTable, axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.analysis.demand.steps import moves
from progc.errors import TargetError, VerifyError, first_of
from progc.ir.operations import op_name
from progc.ir.program import MODES, Program
from progc.lift.entry import Scale, TensorLift
from progc.lift.index_map import How
from progc.lift.lift import Lift, strides
from progc.transforms.shrinking.removal import KeptBlocks, shortened
from progc.transforms.width.widening import Widening, rewrite

Units = Literal["spread", "leading"]


@dataclasses.dataclass(frozen=True)
class Smaller:
    """A sub-network.

    Attributes:
        program: the sub-network.
        lift: how its tensors are made from those of the full program.
        axes: names of the axes that got smaller, without those that belong to removed blocks only.
        notes: tensors that could not share storage, and values that a model class of this size may compute differently.
    """

    program: Program
    lift: Lift
    axes: tuple[str, ...]
    notes: tuple[str, ...]


def shrunk(
    program: Program, kept: Sequence[KeptBlocks], sizes: Mapping[str, int], *, units: Units, storage: str, seed: int = 0
) -> Smaller:
    """Returns the sub-network with these blocks and sizes.

    Args:
        program: the full program.
        kept: chains that get shorter.
        sizes: axis name to new size, for axes that get smaller.
        units: which units of an axis stay.
        storage: `share` or `copy`.
        seed: seed of the lift; nothing is drawn.

    Raises:
        TargetError: a removed block is read from outside, or the network does not run at these sizes.
    """
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
    notes = [f"{last[0]} has one unit left; growth cannot find an axis of size 1 again"] if last else []
    return Smaller(small, lift, narrowed, (*notes, *_notes(program, small, lift, storage)))


def _rigid(program: Program) -> frozenset[str]:
    """Tensors that a graph reads through a view of another shape, which strided units do not allow."""
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
        yield (
            f"{first_of(copied)} cannot share storage, because the units that stay are not a view of the "
            "full tensor. They are copies; progc.transforms.shrinking.written_back writes them back"
        )
    for entry in lift.tensors:
        if any(entry.dims) and not small.specs[entry.name].persistent and entry.name not in small.tied:
            yield (
                f"{entry.name}, which no checkpoint holds, went from "
                f"{list(program.tensors[entry.source].shape)} to {list(small.tensors[entry.name].shape)}; a "
                "model class that computes it from its size may differ"
            )


class Narrowing(Widening):
    """New, smaller sizes for axes. Same interface as `Widening`, so that the same code rewrites the graphs.

    Args:
        table: the axes of the full program.
        sizes: axis name to new size.
        vanished: axes that are removed entirely (segments of concatenations).
        units: which units of an axis stay.
    """

    def __init__(self, table: AxisTable, sizes: Mapping[str, int], vanished: frozenset[Atom], units: Units) -> None:
        self.table = table
        self.units = units
        self.new = {table[name].atom: size for name, size in sizes.items()} | dict.fromkeys(vanished, 0)

    def how(self, atom: Atom, old: int, new: int) -> How:
        """Returns which units of an axis stay."""
        return self.units if new < old else "copy"

    def entry(self, program: Program, name: str, source: str, storage: str) -> TensorLift:
        """Returns how the tensor `name` is made from the full program's `source`."""
        canonical = program.tied.get(source, source)
        dims = self.table.tensor_dims.get(source, ())
        maps = tuple(self.index_map(dim) if self.grows(dim) else None for dim in dims)
        if not any(maps):
            moved = storage if name != source or storage == "copy" else ""
            return TensorLift(name, source, storage=moved)
        scales = []
        if storage == "copy" and len(dims) > 1:
            for position, dim in enumerate(dims):
                factor = self._fan_in(canonical, position, dim)
                if factor != 1.0:
                    scales.append(Scale(position, (factor,) * D.size_of(dim)))
        return TensorLift(name, source, maps, scales=tuple(scales), storage=storage)

    def _fan_in(self, name: str, position: int, dim: Dim) -> float:
        """The square root of the ratio of fan-ins, which preserves var(w) * fan-in and so the variance of the output.

        He et al., ICCV 2015, section 2.2. Only dims that are consumers everywhere count; a tied table that also
        produces units is not scaled.
        """
        sides = self.table.sides.get((name, position), {})
        consumed = {atom for atom in self.grows(dim) if sides.get(atom) == {"consumer"}}
        if not consumed:
            return 1.0
        over = self.index_map(dim, consumed)
        return math.sqrt(over.old / over.new) if over.new else 1.0
