"""Widens a program: which kind of growth each axis gets, the index maps that follow, and the rewritten program.

Tensors change through the lift, and graphs through their literals, in one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.analysis.axes import Axis, AxisTable
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.analysis.axes.records import Event
from progc.analysis.padding import Padding, PaddingRefused, PadState, padding_of
from progc.errors import TargetError
from progc.ir.graphs import copy_graph, drop_unread_sizes, propagate, set_literal
from progc.ir.program import MODES, Program
from progc.lift.entry import Fill, Scale
from progc.lift.index_map import How, IndexMap

INITS = ("copy", "zero", "random")


@dataclasses.dataclass(frozen=True)
class AxisGrowth:
    """Growth of one axis: `kind` is copy, pad, free or random; `why` gives the reason for that kind."""

    axis: str
    old: int
    new: int
    kind: str
    why: str = ""


class Widening:
    """New sizes for axes, and the index maps that follow from them."""

    def __init__(self, table: AxisTable, sizes: Mapping[str, int], init: str) -> None:
        self.table = table
        self.init = init
        self.new: dict[Atom, int] = {}
        self.kind: dict[Atom, str] = {}
        self.paddings: dict[Atom, Padding] = {}
        self.unpadded: dict[Atom, str] = {}
        self.growths: list[AxisGrowth] = []
        for name, size in sizes.items():
            axis = table[name]
            _check_growable(axis, size)
            if size != axis.size:
                self.new[axis.atom] = size
        tied = conflicts(table)
        for name, size in sizes.items():
            axis = table[name]
            if axis.atom in self.new:
                kind, why = self._choose(axis, tied)
                self.kind[axis.atom] = kind
                self.growths.append(AxisGrowth(name, axis.size, size, kind, why))

    def _choose(self, axis: Axis, tied: Mapping[Atom, set[str]]) -> tuple[str, str]:
        if self.init == "random":
            return "random", ""
        if self.new[axis.atom] % axis.size:
            normalising = next((event for event in self.table.events if _normalises(event, axis.atom)), None)
            if normalising is not None:
                try:
                    self.paddings[axis.atom] = padding_of(self.table, axis.atom)
                except PaddingRefused as refused:
                    self.unpadded[axis.atom] = str(refused)
                else:
                    return "pad", f"{self.new[axis.atom]} units are not an integer multiple, and {normalising.op} " + (
                        "takes statistics over them: new units hold the mean of the old ones"
                        if self.paddings[axis.atom].means
                        else "takes statistics over them: new units hold zero"
                    )
        if self.init == "copy":
            return "copy", ""
        if axis.conditions:
            return "copy", f"new units would not be exact: {axis.conditions[0]}"
        if axis.atom in tied:
            return "copy", f"{sorted(tied[axis.atom])[0]} is both producer and consumer"
        return "free", ""

    def padded(self, name: str, dims: tuple[Dim, ...]) -> tuple[list[Scale], list[Fill]]:
        """Returns the factors and fills of a tensor along the padded axes.

        Args:
            name: canonical name of the tensor.
        """
        scales, fills = [], []
        for position, dim in enumerate(dims):
            for atom in dict.fromkeys(self.grows(dim)):
                if atom not in self.paddings:
                    continue
                state = self.paddings[atom].states.get((name, position), PadState(0, "free"))
                if state.power:
                    factor = (self.new[atom] / atom.size) ** (state.power / 2)
                    scales.append(Scale(position, tuple(factor if on else 1.0 for on in _belongs(dim, atom))))
                if state.new in ("zero", "one", "mean"):
                    over = self.index_map(dim, {atom})
                    weights = state.weights if state.new == "mean" else ()
                    fills.append(Fill(position, state.new, over, weights))
        return scales, fills

    def grows(self, dim: Dim) -> list[Atom]:
        """The growing atoms of a dim."""
        return [atom for atom in D.leaves(dim) if atom in self.new]

    def size(self, dim: Dim) -> int:
        """Size of a dim after growth."""
        return D.resized(dim, self.new)

    def index_map(self, dim: Dim, only: set[Atom] | None = None) -> IndexMap:
        """Returns the dim's index map; with `only`, of those atoms only (the others have their new size throughout)."""
        parts = []
        for atom in D.resolve(dim):
            if atom.segments is not None:
                parts.append(IndexMap.concat(tuple(self.index_map(segment, only) for segment in atom.segments)))
                continue
            new = self.new.get(atom, atom.size)
            old = atom.size if only is None or atom in only else new
            parts.append(IndexMap.leaf(old, new, self.how(atom, old, new)))
        return IndexMap.product(tuple(parts)) if parts else IndexMap.leaf(1, 1)

    def how(self, atom: Atom, old: int, new: int) -> How:
        """Returns how the new units of an axis are made from old ones."""
        return "copy" if self.kind.get(atom, "copy") == "copy" else "free"


def _normalises(event: Event, atom: Atom) -> bool:
    return event.kind == "normalise" and any(leaf is atom for leaf in D.leaves(event.dim))


def _belongs(dim: Dim, atom: Atom) -> list[bool]:
    """Per old unit of a dim: whether the atom is one of its factors."""
    units = [False]
    for part in D.resolve(dim):
        if part.segments is not None:
            own = [flag for segment in part.segments for flag in _belongs(segment, atom)]
        else:
            own = [part is atom] * part.size
        units = [left or right for left in units for right in own]
    return units


def _check_growable(axis: Axis, size: int) -> None:
    if size < axis.size:
        raise TargetError(f"axis {axis.name} has {axis.size} units; {size} is smaller, and growth only adds units")
    if size > axis.size and not axis.growable:
        raise TargetError(f"axis {axis.name} (size {axis.size}) cannot grow to {size}: {axis.reason}")


def conflicts(table: AxisTable) -> dict[Atom, set[str]]:
    """Returns the axes along which one tensor dim is both producer and consumer (tied embedding and head)."""
    found: dict[Atom, set[str]] = {}
    for (tensor, _), by_atom in table.sides.items():
        for atom, sides in by_atom.items():
            if len(sides) > 1:
                found.setdefault(atom, set()).add(tensor)
    return found


def rewrite(program: Program, widening: Widening, tensors: dict[str, Any]) -> Program:
    """Returns the program with new tensors, and with the sizes in its graphs adapted to them."""
    graphs = {}
    for mode in MODES:
        graph = copy_graph(program.graphs[mode])
        nodes = {node.name: node for node in graph.nodes}
        for literal in widening.table.literals:
            there = literal.mode == mode and literal.node in nodes  # not in a block that `shrink` removed
            if there and any(widening.grows(part) for part in literal.parts):
                new = sum(widening.size(part) for part in literal.parts)
                old = sum(D.size_of(part) for part in literal.parts)
                if literal.value is not None:
                    share = literal.value * new / old
                    set_literal(nodes[literal.node], literal.path, old, int(share) if share.is_integer() else share)
                    continue
                set_literal(nodes[literal.node], literal.path, old, new)
        drop_unread_sizes(graph)
        graphs[mode] = graph
    ordered = {name: tensors[name] for name in program.tensors}
    grown = program.replace(graphs=graphs, tensors=ordered)
    for mode in MODES:
        propagate(grown, grown.graphs[mode], mode)
    return grown
