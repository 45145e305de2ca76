"""How an axis can be padded: `padding_of` searches backwards, then checks the result with the proof.

The search goes from statistics over the axis backwards to the tensors that must be scaled and filled.

A demand on a value states the factor of its old units and the contents of its new units. It is passed on to the
operands of the value, down to tensors. The result is a proposal; proof.py checks it. The answer is valid for every new
size of the axis.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.axes.dims import Atom
from progc.analysis.demand.contractions import contraction
from progc.analysis.demand.steps import moves
from progc.analysis.padding.proof import Forward, Tensors
from progc.analysis.padding.reading import Key, Reading, scalar
from progc.analysis.padding.states import Differs, PaddingRefused, PadState
from progc.analysis.padding.transfer import along, grouped
from progc.ir.operations import (
    CHANNEL_NORMS,
    FEATURE_NORMS,
    HOMOGENEOUS,
    POINTWISE,
    ZERO_PRESERVING,
    DemandRefused,
    argument,
    describe,
    is_product,
    op_name,
)
from progc.ir.program import MODES, Program

if TYPE_CHECKING:
    from progc.analysis.axes import AxisTable

_VISITS = 20_000


@dataclasses.dataclass(frozen=True)
class Padding:
    """How to pad one axis: the state of each of its tensor dims. Valid for every new size."""

    states: Mapping[Key, PadState]

    @property
    def means(self) -> bool:
        """True if new units hold means somewhere; False if they are zero at every normalisation."""
        return any(state.new == "mean" for state in self.states.values())


_known: weakref.WeakKeyDictionary[AxisTable, dict[Atom, Padding | str]] = weakref.WeakKeyDictionary()


def padding_of(table: AxisTable, atom: Atom) -> Padding:
    """Returns how to pad `atom`, an axis that statistics are taken over.

    Raises:
        PaddingRefused: padding is not exact; the message names the operation and the reason.
    """
    known = _known.setdefault(table, {})
    if atom not in known:
        try:
            known[atom] = _find(table.program, atom)
        except DemandRefused as refused:
            known[atom] = str(refused)
    found = known[atom]
    if isinstance(found, str):
        raise PaddingRefused(found)
    return found


def can_pad(table: AxisTable, atom: Atom) -> bool:
    """Returns whether `padding_of` succeeds; the axis can then grow to any size."""
    try:
        padding_of(table, atom)
    except PaddingRefused:
        return False
    return True


def _find(program: Program, atom: Atom) -> Padding:
    tensors = Tensors()
    readings = {mode: Reading(program, mode, atom) for mode in MODES}
    searches = {mode: Search(readings[mode], tensors) for mode in MODES}
    for search in searches.values():
        search.run()
    while True:
        chosen = Tensors(tensors.states)
        try:
            for mode in ("eval", "train"):
                Forward(readings[mode], chosen, searches[mode].want).run()
        except Differs as differs:
            # A value that nothing normalises (the last sum of a stage) has the factor too. Each round demands one more.
            searches[differs.mode].ask(differs.value, PadState(differs.power, "any"))
        else:
            return Padding(chosen.states)


class Search:
    """The demands on values of one graph; `tensors` is shared with the other graph."""

    def __init__(self, reading: Reading, tensors: Tensors) -> None:
        self.reading, self.tensors = reading, tensors
        self.want: dict[fx.Node, PadState] = {}
        self._visits = 0

    def run(self) -> None:
        """Follows the demands of all operations that take statistics over the axis, then those of tied tensors.

        Raises:
            PaddingRefused: names the operation that a demand cannot pass, and the reason.
        """
        later: list[fx.Node] = []
        heads: list[fx.Node] = []
        for node in self.reading.graph.nodes:
            name = op_name(node) if node.op == "call_function" else ""
            if name in FEATURE_NORMS and self.reading.carries(argument(node, "input")) and self.reading.over_axis(node):
                self._norm(node, argument(node, "input"), "mean" if name == "layer_norm" else "zero")
            elif name == "group_norm" and self.reading.carries(node):
                raise PaddingRefused(f"{describe(node)} takes statistics over space and channels together")
            elif name in ("mean", "var", "var_mean") and self._reduces(node):
                later.append(node)
            elif name == "scaled_dot_product_attention" and argument(node, "scale") is None:
                heads.append(node)
        for node in later:
            self._statistics(node)
        for node in later:
            x = self.reading.uncast(node.args[0])
            if x not in self.want and not self.reading.is_tensor(x):
                self.ask(x, PadState(0, "mean"))
        for node in heads:
            query = node.args[0]
            if isinstance(query, fx.Node) and len(self.reading.value(query).dims) - 1 in self.reading.places(query):
                self.ask(query, PadState(1, "any"))  # the operation divides by the square root of the head dim
        self._tied()

    def _reduces(self, node: fx.Node) -> bool:
        return self.reading.carries(node.args[0]) and not self.reading.carries(node)

    def _norm(self, node: fx.Node, x: fx.Node, fill: str) -> None:
        place = self.reading.places(x)[-1]
        if fill == "mean" and (not self.reading.alone(x, place) or len(argument(node, "normalized_shape")) > 1):
            raise PaddingRefused(f"{describe(node)} takes statistics over a product of it and another dim")
        self.ask(x, PadState(1, fill))  # type: ignore[arg-type]

    def _statistics(self, node: fx.Node) -> None:
        """Norms written as several operations: a variance, a mean of squares, a mean of squares of centred values."""
        x = self.reading.uncast(node.args[0])
        if op_name(node) != "mean":
            self.ask(x, PadState(1, "mean"))
            return
        if not isinstance(x, fx.Node):
            return
        name = op_name(x)
        squared = name == "square" or (name == "pow" and x.args[1] == 2) or (name == "mul" and x.args[0] is x.args[1])
        if squared:
            base = self.reading.uncast(x.args[0])
            if op_name(base) == "sub" and _is_mean(self.reading, base.args[1]):
                self.ask(self.reading.uncast(base.args[0]), PadState(1, "mean"))
            else:
                self.ask(base, PadState(1, "zero"))
            self.want[x] = PadState(2, "zero")

    def _tied(self) -> None:
        """A tensor used as table and as weight has the state of the table; the value it multiplies compensates."""
        table = axes_of(self.reading.program)
        for use in table.uses:
            here = use.role == "consume" and use.mode == self.reading.mode and self.reading.holds(use.part)
            state = self.tensors.states.get((use.name, use.dim)) if here else None
            if state is not None and use.operand is not None:
                sides = table.sides.get((use.name, use.dim), {}).get(self.reading.atom, set())
                if len(sides) > 1:
                    self.ask(self.reading.nodes[use.operand], PadState(-state.power, "any"))

    # -- one demand ------------------------------------------------------------------------------------------

    def ask(self, node: object, state: PadState) -> None:
        """Demands a state of a value.

        Raises:
            PaddingRefused: the operation that computes the value cannot produce the state.
        """
        self._visits += 1
        if not isinstance(node, fx.Node) or self._visits > _VISITS:
            raise PaddingRefused(f"{node} is a number; no parameter computes it")
        if state == PadState(0, "any"):
            return
        known = self.want.get(node)
        if known == state or (known is not None and state.new == "any" and known.power == state.power):
            return
        if known is not None:
            why = (
                "needs different factors for its readers" if known.power != state.power else "is normalised in two ways"
            )
            raise PaddingRefused(f"{describe(node)} {why}")
        if not self.reading.carries(node):
            if state.power == 0 and state.new in ("mean", "any") and not state.weights:
                return
            raise PaddingRefused(f"{_text(node)} is the same for all units, so no tensor can give it the factor")
        if self.reading.is_tensor(node):
            self._tensor(node, state)
            return
        if node.op != "call_function":
            raise PaddingRefused(f"{node} is an input")
        self.want[node] = state
        self._back(node, state)

    def _tensor(self, node: fx.Node, state: PadState) -> None:
        places = self.reading.places(node)
        key = self.reading.key(node, places[0]) if len(places) == 1 else None
        if key is None:
            raise PaddingRefused(f"{node} has the axis along two dims or repeats one entry along it")
        self._tensor_dim(key, state)

    def _tensor_dim(self, key: Key, state: PadState) -> None:
        known = self.tensors.states.get(key)
        if state.new != "any":
            self.tensors.give(key, state)
        elif known is None or known.power != state.power:
            self.tensors.give(key, PadState(state.power, "free"))

    def _back(self, node: fx.Node, state: PadState) -> None:
        name = op_name(node)
        if name in POINTWISE or name == "masked_fill":
            self.ask(node.args[0], state)
        elif name == "getitem" or moves(node):
            self._moved(node, state)
        elif name in ("add", "sub"):
            for term in node.args[:2]:
                if not (scalar(term) and term == 0):
                    self.ask(term, state)
        elif is_product(node):
            self._product(node, state)
        elif name in FEATURE_NORMS:
            if state.new == "mean":
                raise PaddingRefused(
                    f"{describe(node)} writes into it, and after its gain and shift no unit is the mean of the others"
                )
        elif name == "square" or (name == "pow" and node.args[1] == 2):
            if state.new == "mean" or state.power % 2:
                raise PaddingRefused(f"{describe(node)} is not linear in its units")
            self.ask(node.args[0], PadState(state.power // 2, state.new))
        elif name in ZERO_PRESERVING:
            scaled = state.power != 0 and name not in HOMOGENEOUS
            if state.new == "mean" or scaled:
                what = "of a mean is not a mean" if state.new == "mean" else "does not pass a factor through"
                raise PaddingRefused(f"{describe(node)} {what}")
            self.ask(node.args[0], state)
        elif name in HOMOGENEOUS:
            if state.new != "any":
                raise PaddingRefused(f"{describe(node)} of a mean is not a mean, and its gradient at zero is zero")
            self.ask(node.args[0], state)
        else:
            self._linear(node, state)

    def _moved(self, node: fx.Node, state: PadState) -> None:
        operands = [n for n in node.all_input_nodes if self.reading.carries(n)]
        if op_name(node) in ("index", "index_select", "expand_as", "view_as", "reshape_as"):
            operands = operands[:1]
        if not operands:
            self.ask(node.args[0] if isinstance(node.args[0], fx.Node) else None, state)
        for operand in operands:
            self.ask(operand, state)

    def _product(self, node: fx.Node, state: PadState) -> None:
        sides = list(node.args[: 2 if op_name(node) == "mul" else 1])
        carrying = [side for side in sides if self.reading.carries(side)]
        if len(carrying) == 1:
            self.ask(carrying[0], state)
            return
        if state.new == "any" and any(self.reading.is_tensor(side) for side in carrying):  # type: ignore[arg-type]
            return  # a gain takes the factor; the proof determines how much is left
        values = [side for side in carrying if not self.reading.is_tensor(side)]  # type: ignore[arg-type]
        if state.new == "mean":
            gains = [side for side in carrying if side not in values]
            if len(gains) != 1 or len(values) != 1 or not self.reading.is_gain(gains[0]):
                raise PaddingRefused(f"{describe(node)} multiplies two values, and a product of means is not a mean")
            (gain,) = gains
            assert isinstance(gain, fx.Node)
            key = self.reading.key(gain, self.reading.places(gain)[0])
            if key is None:
                raise PaddingRefused(f"{gain} repeats one entry along the axis")
            self.tensors.give(key, PadState(0, "one", (key[0],)))
            self.ask(values[0], PadState(state.power, "mean", tuple(sorted((*state.weights, key[0])))))
            return
        # Avoid a table that does not depend on the input (cosines of positions).
        self.ask(min(values or carrying, key=lambda side: self.reading.value(side).constant), state)

    def _linear(self, node: fx.Node, state: PadState) -> None:
        name = op_name(node)
        found = contraction(node) if name not in CHANNEL_NORMS else None
        if found is None or grouped(node):
            raise PaddingRefused(f"{describe(node)} does not pass the factor through")
        kept = [
            operand
            for operand in found.operands
            if any(label in found.out for _, label in along(self.reading, operand))
        ]
        if not kept:
            raise PaddingRefused(f"{describe(node)} does not pass the factor through")
        if state.new == "mean" and (len(kept) > 1 or _per_head(self.reading, node)):
            raise PaddingRefused(f"{describe(node)} has separate weights for every unit")
        first = next((operand for operand in kept if not self.reading.is_tensor(operand.node)), kept[0])
        place = next(place for place, label in along(self.reading, first) if label in found.out)
        if self.reading.is_tensor(first.node):
            key = self.reading.key(first.node, place)
            if key is None:
                raise PaddingRefused(f"{first.node} repeats one entry along the axis")
            self._tensor_dim(key, state)
        else:
            self.ask(first.node, state)
        if found.bias is not None:
            self.ask(found.bias.node, state)


def _per_head(reading: Reading, node: fx.Node) -> bool:
    """Returns True for attention with the axis among its heads, which have separate scores."""
    if op_name(node) != "scaled_dot_product_attention":
        return False
    value = node.args[2]
    assert isinstance(value, fx.Node)
    return reading.places(value) != [len(reading.value(value).dims) - 1]


def _is_mean(reading: Reading, item: object) -> bool:
    item = reading.uncast(item)
    return isinstance(item, fx.Node) and op_name(item) == "mean"


def _text(node: fx.Node) -> str:
    return describe(node) if node.op == "call_function" else str(node.target)
