"""The proof: a forward walk over a graph that computes the state of every value.

The walk chooses the states that the search left open: the gain of a normalisation removes the factor, its shift is zero
for new units, and a tensor that sums over the axis removes factors in its columns. All other states are checked. An
operation without a transfer function (transfer.py) is refused if its operands or its value have the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from progc.analysis.demand.steps import moves
from progc.analysis.padding.reading import Key, Reading, scalar
from progc.analysis.padding.states import ALIKE, Differs, PaddingRefused, PadState, joined
from progc.ir.graphs import stale_reads
from progc.ir.operations import SHAPE_ONLY, argument, describe, op_name, shape_of
from progc.ir.program import TensorMeta

Result = PadState | tuple[PadState, ...]
Rule = Callable[["Forward", fx.Node], Result]
RULES: dict[str, Rule] = {}


def transfer(*names: str) -> Callable[[Rule], Rule]:
    """Registers the transfer function of one or more operations."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


class Tensors:
    """The states of tensor dims along the axis; each dim has a single state."""

    def __init__(self, states: Mapping[Key, PadState] | None = None) -> None:
        self.states: dict[Key, PadState] = dict(states or {})

    def give(self, key: Key, state: PadState) -> None:
        """Sets the state of a tensor dim.

        Raises:
            PaddingRefused: the dim already has another state.
        """
        known = self.states.setdefault(key, state)
        if known != state:
            raise PaddingRefused(
                f"{key[0]} would need to be {_words(known)} for one reader and {_words(state)} for another"
            )


def _words(state: PadState) -> str:
    fill = {"zero": "padded with zeros", "mean": "padded with means", "one": "padded with ones"}.get(
        state.new, "padded"
    )
    return f"{fill} and scaled by s^{state.power}" if state.power else fill


class Forward:
    """The walk over one graph. `want` holds the states that the search requires of values."""

    def __init__(self, reading: Reading, tensors: Tensors, want: Mapping[fx.Node, PadState]) -> None:
        self.reading, self.tensors, self.want = reading, tensors, want
        self.states: dict[fx.Node, Result] = {}

    def run(self) -> None:
        """Computes the states of all values.

        Raises:
            PaddingRefused: an operation does not preserve the state, or an output changes.
        """
        for node in self.reading.graph.nodes:
            if node.op == "output":
                for value in node.all_input_nodes:
                    if self.state(value) != ALIKE:
                        raise PaddingRefused(f"the output {value} would change")
            elif node.op == "call_function" and self._concerned(node):
                self._unmixed(node)
                self.states[node] = self._step(node)
        for writer, reader in stale_reads(self.reading.graph):
            if self.reading.carries(writer) or self.states.get(writer, ALIKE) != ALIKE:
                raise PaddingRefused(f"{describe(writer)} writes in place, and {reader} reads the old value afterwards")

    def _concerned(self, node: fx.Node) -> bool:
        if self.reading.is_tensor(node) or isinstance(node.meta.get("tensor"), int):
            return False  # a moved tensor has the states of the tensor
        reads = any(self.reading.carries(n) or self.states.get(n, ALIKE) != ALIKE for n in node.all_input_nodes)
        return reads or self.reading.carries(node)

    def _unmixed(self, node: fx.Node) -> None:
        """Checks that one state describes the node: one dim has the axis, and a factor applies to all of it.

        Raises:
            PaddingRefused: it does not.
        """
        inputs = node.all_input_nodes
        if self.reading.twice(node):
            raise PaddingRefused(f"{describe(node)} has the axis along two dims")
        if any(not self.reading.carries(n) and self.states.get(n, ALIKE) != ALIKE for n in inputs):
            for value in (*inputs, node):
                if not all(self.reading.product(value, place) for place in self.reading.places(value)):
                    raise PaddingRefused(f"{describe(node)} would multiply more than the axis by the factor")

    def _step(self, node: fx.Node) -> Result:
        name = op_name(node)
        if name == "getitem":
            return self._item(node)
        if name in RULES:
            return RULES[name](self, node)
        if name in SHAPE_ONLY:
            return PadState(0, "free" if self.reading.carries(node) else "const")
        if moves(node):
            return self._moved(node)
        raise PaddingRefused(f"{describe(node)} has no padding rule")

    # -- states of values ------------------------------------------------------------------------------------

    def state(self, item: Any, place: int | None = None) -> PadState:
        """Returns the state of a value, or of one dim of a tensor. A tensor without a state gets free units."""
        if not isinstance(item, fx.Node):
            return ALIKE
        if self.reading.is_tensor(item):
            key = self.key(item, place)
            return ALIKE if key is None else self.tensors.states.setdefault(key, PadState(0, "free"))
        if item.op == "get_attr" and self.reading.carries(item):  # written in place: nothing is known about new units
            for at in self.reading.places(item):
                self.tensors.give((str(item.target), at), PadState(0, "free"))
            return PadState(0, "free")
        found = self.states.get(item, ALIKE)
        if isinstance(found, tuple):
            raise PaddingRefused(f"{describe(item)} has several results")
        return found

    def key(self, item: fx.Node, place: int | None = None) -> Key | None:
        """Returns the tensor dim that holds the axis in a moved tensor."""
        places = self.reading.places(item) if place is None else [place]
        if len(places) > 1:
            raise PaddingRefused(f"{item} has the axis along two dims")
        return self.reading.key(item, places[0]) if places else None

    def open_key(self, item: Any, place: int | None = None) -> Key | None:
        """Returns the tensor dim of a value if the state of the dim is still open, else None."""
        if not isinstance(item, fx.Node) or not self.reading.is_tensor(item):
            return None
        key = self.key(item, place)
        return key if key is not None and key not in self.tensors.states else None

    def wanted(self, node: fx.Node) -> int:
        """Returns the power that the search requires of a value; 0 if it requires none."""
        return self.want[node].power if node in self.want else 0

    def unscaled(self, node: fx.Node, *items: Any) -> list[PadState]:
        """Returns the states of operands, which must not have a factor."""
        states = [self.state(item) for item in items]
        if any(state.power for state in states):
            raise PaddingRefused(f"{describe(node)} does not pass a factor through")
        return states

    def differs(self, node: fx.Node, values: Sequence[Any]) -> PaddingRefused:
        """Returns the refusal of an operation whose operands have different factors, with one that may change."""
        text = f"{describe(node)} combines values with the factor and values without it"
        powers = [self.state(value).power for value in values]
        for value, power in zip(values, powers, strict=True):
            wrong = next((other for other in powers if other != power and other), None)
            if wrong is not None and self.reading.carries(value) and value not in self.want:
                return Differs(text, self.reading.mode, value, wrong)
        return PaddingRefused(text)

    # -- operations that move values -------------------------------------------------------------------------

    def _item(self, node: fx.Node) -> PadState:
        base, position = node.args
        assert isinstance(base, fx.Node) and isinstance(position, int)
        found = self.states.get(base, ALIKE)
        if isinstance(found, tuple):
            return found[position]
        return found if self.reading.carries(node) or found.new == "const" else ALIKE

    def _moved(self, node: fx.Node) -> PadState:
        """Views, slices and concatenations, also of operands with the axis and operands without it."""
        # Numbers that are inserted (padding) are zero: moves() checks this.
        sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("tensor"), (TensorMeta, tuple))]
        sources = [
            n for n in sources if op_name(node) not in ("expand_as", "view_as", "reshape_as") or n is node.args[0]
        ]
        carrying = [self.state(n) for n in sources if self.reading.carries(n)]
        others = [self.state(n) for n in sources if not self.reading.carries(n)]
        if op_name(node) in ("index", "index_select"):
            sources, carrying, others = sources[:1], carrying[:1], []
            if not carrying:
                carrying = [self.state(node.args[0])]
        states = carrying or others
        total = states[0]
        for state in states[1:]:
            both = joined(total, state)
            if both is None:
                raise self.differs(node, [n for n in sources if self.reading.carries(n)])
            total = both
        if carrying and any(state.power for state in others):
            raise PaddingRefused(f"{describe(node)} joins values with different factors")
        if total.new != "const" and not self.reading.carries(node):
            if isinstance(node.meta.get("tensor"), TensorMeta):
                return ALIKE if not total.power else self._refuse(node)
        return total

    def _refuse(self, node: fx.Node) -> PadState:
        raise PaddingRefused(f"{describe(node)} loses the axis")


def is_zero(item: Any) -> bool:
    """Returns True for the number 0."""
    return scalar(item) and item == 0


def rank(node: Any) -> int:
    """Returns the number of dims of a value."""
    return len(shape_of(node))


__all__ = ["RULES", "Forward", "Tensors", "argument", "is_zero", "rank", "transfer"]
