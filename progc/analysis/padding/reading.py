"""A graph seen along one axis: which dims of values hold the axis, and which tensor dims they come from."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.analysis.axes.records import Value
from progc.analysis.padding.states import PaddingRefused
from progc.ir.operations import argument, op_name
from progc.ir.program import Mode, Program

Key = tuple[str, int]
"""A tensor (canonical name) and one of its dims."""


class Reading:
    """A graph seen along one axis."""

    def __init__(self, program: Program, mode: Mode, atom: Atom) -> None:
        self.program, self.mode, self.atom = program, mode, atom
        self.graph = program.graphs[mode]
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.order = {node: position for position, node in enumerate(self.graph.nodes)}
        self._carrying: dict[str, bool] = {}

    def value(self, node: Any) -> Any:
        """Returns the `Value` of a node; a list if it has several."""
        return axes_of(self.program).values.get((self.mode, node.name))

    def carries(self, node: Any) -> bool:
        """Returns True if any dim of the node's value holds the axis."""
        if not isinstance(node, fx.Node):
            return False
        if node.name not in self._carrying:
            values = self.value(node)
            values = values if isinstance(values, (list, tuple)) else [values]
            self._carrying[node.name] = any(
                self.holds(dim) for value in values if isinstance(value, Value) for dim in value.dims
            )
        return self._carrying[node.name]

    def holds(self, dim: Dim) -> bool:
        """Returns True if the dim holds the axis."""
        return any(atom is self.atom for atom in D.leaves(dim))

    def places(self, node: Any) -> list[int]:
        """Returns the dims of a value that hold the axis."""
        value = self.value(node)
        return [i for i, dim in enumerate(value.dims) if self.holds(dim)] if isinstance(value, Value) else []

    def twice(self, node: fx.Node) -> bool:
        """Returns True if two dims of one value hold the axis, which a single state cannot describe."""
        values = self.value(node)
        values = values if isinstance(values, (list, tuple)) else [values]
        return any(sum(map(self.holds, value.dims)) > 1 for value in values if isinstance(value, Value))

    def alone(self, node: Any, place: int) -> bool:
        """Returns True if a dim of a value is exactly the axis."""
        dim = D.resolve(self.value(node).dims[place])
        return len(dim) == 1 and dim[0] is self.atom

    def product(self, node: Any, place: int) -> bool:
        """Returns True if the size of a dim is the size of the axis times a factor that does not grow with it."""
        return self._degree(self.value(node).dims[place]) == 1

    def _degree(self, dim: Dim) -> int:
        """Returns how often the axis is a factor of the dim's size; -1 if the size is not a multiple of it."""
        total = 0
        for atom in D.resolve(dim):
            if atom.segments is None:
                total += atom is self.atom
                continue
            degrees = {self._degree(segment) for segment in atom.segments}
            if len(degrees) > 1 or -1 in degrees:
                return -1
            total += degrees.pop()
        return total

    def is_tensor(self, node: fx.Node) -> bool:
        """Returns True for a parameter or buffer, rearranged or not."""
        value = self.value(node)
        return isinstance(value, Value) and value.source is not None

    def key(self, node: fx.Node, place: int) -> Key | None:
        """Returns the tensor dim of a dim of a moved tensor; None if the dim repeats one entry.

        Raises:
            PaddingRefused: the dim holds more than one dim of the tensor.
        """
        value = self.value(node)
        held = [
            dim
            for dim in value.source.dims[place]
            if self.holds(axes_of(self.program).tensor_dims[value.source.name][dim])
        ]
        if len(held) > 1:
            raise PaddingRefused(f"{value.source.name} is reshaped along the axis")
        return (value.source.name, held[0]) if held else None

    def is_gain(self, node: Any) -> bool:
        """Returns True for a tensor that holds one number for each unit of the axis."""
        if not isinstance(node, fx.Node) or not self.is_tensor(node):
            return False
        value = self.value(node)
        dims = axes_of(self.program).tensor_dims[value.source.name]
        return all(D.resolve(dim) in ((), (self.atom,)) for dim in dims) and len(self.places(node)) == 1

    def over_axis(self, node: fx.Node) -> bool:
        """Returns True for a normalisation that takes statistics over the axis."""
        x = argument(node, "input")
        shape = argument(node, "normalized_shape")
        return any(place >= len(self.value(x).dims) - len(shape) for place in self.places(x))

    def uncast(self, node: Any) -> Any:
        """Returns the value before casts and copies."""
        while isinstance(node, fx.Node) and op_name(node) in ("to", "_to_copy", "type_as", "clone", "contiguous"):
            node = node.args[0]
        return node


def scalar(item: Any) -> bool:
    """Returns True for a plain number."""
    return isinstance(item, (int, float)) and not isinstance(item, bool)
