"""Smaller sizes for axes, and the tensor entries that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from progc.analysis.axes import AxisTable
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.ir.program import Program
from progc.lift.entry import Scale, TensorLift
from progc.lift.index_map import How
from progc.transforms.width.widening import Widening

Units = Literal["spread", "leading"]


class Narrowing(Widening):
    """New, smaller sizes for axes: what `Widening` is for growth, so that graphs are rewritten by the same code.

    Args:
        sizes: axis name to new size.
        vanished: axes that go entirely (segments of concatenations).
        units: which units of an axis stay.
    """

    def __init__(self, table: AxisTable, sizes: Mapping[str, int], vanished: frozenset[Atom], units: Units) -> None:
        self.table = table
        self.units = units
        self.new = {table[name].atom: size for name, size in sizes.items()} | dict.fromkeys(vanished, 0)

    def how(self, atom: Atom, old: int, new: int) -> How:
        """Which units of an axis stay."""
        return self.units if new < old else "copy"

    def entry(self, program: Program, name: str, source: str, storage: str) -> TensorLift:
        """How the tensor `name` is made of the full program's `source`."""
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
        """The root of the fan-in's ratio: var(w) * fan-in stays, and with it the variance of the output.

        He et al., ICCV 2015, section 2.2. Dims that only contract count; a tied table that also makes units stays.
        """
        sides = self.table.sides.get((name, position), {})
        consumed = {atom for atom in self.grows(dim) if sides.get(atom) == {"consumer"}}
        if not consumed:
            return 1.0
        over = self.index_map(dim, consumed)
        return math.sqrt(over.old / over.new) if over.new else 1.0
