"""Appends outputs for a target with more classes: old outputs keep their order and values, new ones come last.

Width growth never changes an output axis, because the outputs themselves would change. This step grows it for a target
model only, and reports equality for the old outputs only. `old_outputs` makes the grown program comparable with its
source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from progc.analysis.axes import AxisTable, axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import OUTPUT
from progc.analysis.axes.records import DECIDING
from progc.errors import LOSSY, NotLosslessError
from progc.ir.graphs import copy_graph, propagate
from progc.ir.program import MODES, Program, TensorMeta
from progc.lift.entry import Split, TensorLift
from progc.lift.lift import Lift
from progc.pipeline.base import PassResult
from progc.transforms.width.widening import AxisGrowth, Widening, rewrite


class _Appended(Widening):
    """New units at the end of axes that are pinned only because they are outputs."""

    def __init__(self, table: AxisTable, sizes: Mapping[str, int]) -> None:
        super().__init__(table, {}, "zero")
        for name, size in sizes.items():
            axis = table[name]
            assert tuple(axis.atom.reasons) == (OUTPUT,), f"{name}: {axis.reason}"
            self.new[axis.atom], self.kind[axis.atom] = size, "free"
            self.growths.append(AxisGrowth(name, axis.size, size, "appended"))


def append_outputs(program: Program, sizes: Mapping[str, int], *, zero: bool = False, seed: int = 0) -> PassResult:
    """Returns the program with more units on its output axes.

    Args:
        sizes: axis name to new size.
        zero: whether new rows are zero instead of random with the spread of the old ones.
        seed: seed of random rows.

    Raises:
        NotLosslessError: an operation mixes the outputs (a softmax), so that the old ones would change.
    """
    if not sizes:
        return PassResult(program, False, lossless=True)
    table = axes_of(program)
    widening = _Appended(table, sizes)
    for event in table.events:
        if event.kind in DECIDING and widening.grows(event.dim):
            raise NotLosslessError(
                f"{', '.join(sizes)}: {event.op} at {event.node} does not ignore new outputs, so the old ones would "
                f"change; {LOSSY}"
            )
    _check_appended(program, widening)
    entries = []
    for name, dims in table.tensor_dims.items():
        if any(widening.grows(dim) for dim in dims):
            entries.append(_entry(program, widening, name, zero))
    lift = Lift(tuple(entries), seed=seed)
    grown = rewrite(program, widening, lift.apply(program.tensors))
    notes = tuple(
        f"{growth.axis}: {growth.new - growth.old} new classes appended; lossless on the old classes (the first "
        f"{growth.old} of {growth.new})"
        for growth in widening.growths
    )
    return PassResult(grown, True, {"outputs appended": len(sizes)}, lift, notes, True)


def _check_appended(program: Program, widening: Widening) -> None:
    """Checks that new units come last in every output; otherwise the old ones would move."""
    for mode in MODES:
        output = next(node for node in reversed(program.graphs[mode].nodes) if node.op == "output")
        for leaf in output.all_input_nodes:
            for dim in getattr(axes_of(program).values[mode, leaf.name], "dims", ()):
                growing = widening.grows(dim)
                if growing and D.resolve(dim)[0] is not growing[0]:
                    raise NotLosslessError(f"new outputs would lie between the old ones in {leaf.name}; {LOSSY}")


def _entry(program: Program, widening: Widening, name: str, zero: bool) -> TensorLift:
    canonical = program.tied.get(name, name)
    dims = axes_of(program).tensor_dims[name]
    splits = []
    for position, dim in enumerate(dims):
        growing = widening.grows(dim)
        sides = widening.table.sides.get((canonical, position), {})
        consumed = {atom for atom in growing if "consumer" in sides.get(atom, ())}
        chosen = set(growing) if zero else consumed  # columns of consumers are zero, and rows if `zero` is set
        if chosen:
            splits.append(Split(position, over=widening.index_map(dim, chosen)))
    maps = tuple(widening.index_map(dim) if widening.grows(dim) else None for dim in dims)
    return TensorLift(name, name, maps, tuple(splits))


def old_outputs(grown: Program, before: Program) -> Program:
    """Returns `grown` with every output cut to its size in `before`, so that the two can be compared."""
    graphs: dict[Any, fx.Graph] = {}
    for mode in MODES:
        graph = copy_graph(grown.graphs[mode])
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        wanted = next(node for node in reversed(before.graphs[mode].nodes) if node.op == "output")
        leaves = list(output.args[0]) if isinstance(output.args[0], (list, tuple)) else [output.args[0]]
        shapes = wanted.args[0] if isinstance(wanted.args[0], (list, tuple)) else [wanted.args[0]]
        with graph.inserting_before(output):
            for index, (leaf, old) in enumerate(zip(leaves, shapes, strict=True)):
                if isinstance(leaf, fx.Node) and isinstance(old, fx.Node):
                    leaves[index] = _cut(graph, leaf, old.meta.get("tensor"))
        output.args = (type(output.args[0])(leaves) if isinstance(output.args[0], (list, tuple)) else leaves[0],)
        graphs[mode] = graph
    cut = grown.replace(graphs=graphs)
    for mode in MODES:
        propagate(cut, cut.graphs[mode], mode)
    return cut


def _cut(graph: fx.Graph, leaf: fx.Node, old: Any) -> fx.Node:
    meta = leaf.meta.get("tensor")
    if not isinstance(meta, TensorMeta) or not isinstance(old, TensorMeta):
        return leaf
    for dim, (new, size) in enumerate(zip(meta.shape, old.shape, strict=True)):
        if new > size:
            leaf = graph.call_function(torch.ops.aten.slice.Tensor, (leaf, dim, 0, size))
    return leaf


def output_axis(table: AxisTable, atom: D.Atom) -> str | None:
    """Returns the name of the axis of an atom that is pinned only as an output, else None."""
    axis = table.axis_of(atom)
    return axis.name if axis is not None and tuple(atom.reasons) == (OUTPUT,) else None
