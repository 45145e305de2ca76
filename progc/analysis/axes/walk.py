"""The walk: one pass over a graph that gives every value factored dims and records what ops do with them.

Rules (progc/analysis/axes/rules, one file per op family) do the work of a single op. They state equalities between
dims, return the dims of the result, and record *events*: what an op does with a dim beyond carrying it along.
An op without a rule pins every axis it touches and says so: the answer degrades, it is never wrong.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes import lengths
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import DECIDING, Event, Literal, Source, Use, Value, fresh_like
from progc.analysis.axes.registry import Args, rule, rule_for
from progc.ir.aliases import written_to
from progc.ir.check import stochastic
from progc.ir.program import MODES, Mode, Program, TensorMeta

__all__ = ["Args", "Context", "Value", "rule"]

# Ops that take a part of an operand, or of some operand only its size, dtype or device.
_LEAVES_OUT = frozenset(
    f"aten.{name}" for name in "slice slice_copy narrow to type_as new_zeros new_ones new_empty new_full".split()
)


class Context:
    """State of the analysis: dims of tensors and values, and everything rules record."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensor_dims: dict[str, tuple[Dim, ...]] = {}
        self.events: list[Event] = []
        self.uses: list[Use] = []
        self.literals: list[Literal] = []
        self.unknown: dict[str, int] = {}
        self.values: dict[str, Any] = {}
        self.value_dims: dict[tuple[Mode, str], Any] = {}
        self.mode: Mode = "eval"
        self.node_name = ""
        self.op = ""
        self.decided: set[int] = set()

    # -- reading the graph ------------------------------------------------------------------------------

    def resolve(self, raw: Any) -> Any:
        """Graph argument to `Value`s, ints and plain data."""
        if isinstance(raw, fx.Node):
            return self.values[raw.name]
        if isinstance(raw, (list, tuple)):
            return [self.resolve(item) for item in raw]
        return raw

    def tensor(self, name: str) -> Value:
        """The value of a parameter, buffer or constant."""
        tensor = self.program.tensors[name]
        if name not in self.tensor_dims:
            dims = tuple(D.new(size) for size in tensor.shape)
            self.tensor_dims[name] = dims
            if not tensor.is_floating_point():
                for dim in dims:
                    D.pin(dim, "holds indices or flags")
        dims = self.tensor_dims[name]
        return Value(dims, Source(name, tuple(frozenset((i,)) for i in range(len(dims)))), constant=True)

    # -- what rules state -------------------------------------------------------------------------------

    def unify(self, a: Dim, b: Dim) -> None:
        """Two dims are one axis; a layout clash pins both."""
        try:
            D.unify(a, b)
        except D.Clash as clash:
            if D.channels(a + b):
                for dim in (a, b):
                    D.pin(dim, f"two layouts meet at {self.op} that cannot be aligned ({clash})")

    def pin(self, dim: Dim, reason: str) -> None:
        """Forbids growth of a dim."""
        D.pin(dim, reason)

    def event(self, kind: str, dim: Dim, *operands: str, root: bool = False) -> None:
        """Records what the current op does with `dim` (extents are of no interest)."""
        if D.channels(dim):
            self.events.append(Event(kind, dim, self.mode, self.node_name, self.op, operands, root))

    def literal(self, path: tuple[int | str, ...], *parts: Dim, value: float | None = None) -> None:
        """The argument at `path` is the sum of the sizes of `parts`, or the number `value` per old unit of them."""
        if any(D.channels(part) for part in parts):
            self.literals.append(Literal(self.mode, self.node_name, path, parts, value))

    def sizes(self, args: Args, name: str, dims: Sequence[Dim]) -> None:
        """The argument `name` is a list of sizes, one per dim (a graph node where the batch size enters)."""
        raw = args.nodes[name]
        for position, dim in enumerate(dims):
            if isinstance(raw[position], fx.Node) or raw[position] not in (-1, 1):
                self.literal((*args.paths[name], position), dim)

    def carry(self, *values: Value | None) -> None:
        """Tensors whose units go along with the result's units."""
        for value in values:
            if value is not None and value.source is not None:
                self.carry_dims(value, range(len(value.dims)))

    def carry_dims(self, value: Value, dims: Iterable[int]) -> None:
        """Like `carry`, for some dims of a tensor."""
        if value.source is not None:
            for dim in dims:
                self._use(value, dim, "carry")

    def consume(self, value: Value, dim: int, operand: str | None) -> bool:
        """A tensor contracts `dim`; False if it is no (moved) tensor and cannot absorb the shares itself."""
        if value.source is None:
            return False
        self._use(value, dim, "consume", operand)
        return True

    def _use(self, value: Value, dim: int, role: str, operand: str | None = None) -> None:
        assert value.source is not None
        for tensor_dim in value.source.dims[dim]:
            use = Use(value.source.name, tensor_dim, value.dims[dim], role, self.mode, self.node_name, operand)
            self.uses.append(use)

    def contract(self, a: Value, dim_a: int, name_a: str, b: Value, dim_b: int, name_b: str) -> None:
        """`sum over the dim of a times b`: the shares go into a parameter if one is there, else they are owed."""
        self.unify(a.dims[dim_a], b.dims[dim_b])
        if (a.lengths or b.lengths) and self._over_lengths(a, dim_a, name_a, b, dim_b, name_b):
            return
        can_a, can_b = _holds(a, dim_a), _holds(b, dim_b)
        # A table of numbers is read, not trained: the parameter beside it takes the shares.
        if can_a and (b.source is None or (self._trained(a) and not self._trained(b))):
            self.consume(a, dim_a, name_b)
        elif can_b and (a.source is None or (self._trained(b) and not self._trained(a))):
            self.consume(b, dim_b, name_a)
        else:
            self.event("contract", a.dims[dim_a], name_a, name_b)

    def _trained(self, value: Value) -> bool:
        return value.source is not None and self.program.specs[value.source.name].kind == "parameter"

    def _over_lengths(self, a: Value, dim_a: int, name_a: str, b: Value, dim_b: int, name_b: str) -> bool:
        """A contraction of values that were divided by their lengths; False, and pinned, if a factor would be left."""
        self.decided.update((id(a), id(b)))
        found = [lengths.roots(a, a.dims[dim_a]), lengths.roots(b, b.dims[dim_b])]
        if found == [1, 1]:
            self.event("normalise", a.dims[dim_a])  # k copies, each 1/k of the product: nothing is owed
            return True
        if sorted(found, key=str) == [0, 1] and a.source is None and b.source is None:
            self.event("contract", a.dims[dim_a], name_a, name_b, root=True)
            return True
        for value in (a, b):
            lengths.pin(self, value)
        return False

    # -- the walk ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Walks both graphs; they share the dims of parameters, so one analysis holds for both."""
        for mode in MODES:
            if mode not in self.program.graphs:
                continue
            self.mode = mode
            self.values = {}
            graph = self.program.graphs[mode]
            written = written_to(graph)
            # Dropout is the train graph's own affair; in eval mode copies of a unit must not be drawn apart.
            drawn = {node.name for node in stochastic(graph)} if mode == "eval" else set()
            for node in graph.nodes:
                self.node_name = node.name
                D.here.set((mode, node.name))
                self.decided.clear()
                value = lengths.follow(self, node, self._visit(node))
                if node.name in written:
                    value = self._overwritten(value)
                if node.name in drawn:
                    for part in _flat([value]):
                        D.pin(D.channels(sum(part.dims, ())), f"{self.op} draws random numbers in eval mode")
                self.values[node.name] = value
            self.value_dims.update({(mode, name): value for name, value in self.values.items()})
        D.here.set(None)

    def _visit(self, node: fx.Node) -> Any:
        meta = node.meta.get("tensor")
        if node.op == "placeholder":
            return self._input(meta)
        if node.op == "get_attr":
            return self.tensor(str(node.target))
        if node.op == "output":
            for value in _flat(self.resolve(list(node.args))):
                for dim in value.dims:
                    D.pin(dim, "output")
            return None
        if isinstance(meta, int):
            return meta
        if node.target is operator.getitem:
            return self.resolve(node.args[0])[node.args[1]]
        name, found = rule_for(node)
        self.op = name
        if found is None or meta is None:
            return self._opaque(node, meta)
        own = name.startswith("aten.")
        try:
            value = found(self, node, Args(self, node))
            fits = _same_sizes(value, meta)
        except (LookupError, TypeError, ValueError, AttributeError, D.Clash) as error:
            # A form of the op that its rule does not cover: as good as no rule, never a guess.
            return self._opaque(node, meta, "" if own else _fault(name, error))
        except Exception as error:
            if own:
                raise  # a fault of ours
            return self._opaque(node, meta, _fault(name, error))
        if not fits:
            return self._opaque(node, meta, "" if own else f"the rule of {name} gives other sizes than the op")
        if not own:
            self._ask_origin(node, value)
        self._account(node, value)
        return value

    def _account(self, node: fx.Node, value: Any) -> None:
        """Pins what went into an op and neither came out nor was recorded: its rule forgot it."""
        if self.op in _LEAVES_OUT:
            return
        inputs = [part for item in self.resolve([*node.args, *node.kwargs.values()]) for part in _flat([item])]
        entered = {atom for part in inputs for atom in D.channels(sum(part.dims, ())) if not atom.reasons}
        entered.difference_update(atom for part in _flat([value]) for atom in D.leaves(sum(part.dims, ())))
        if not entered:
            return
        here = (self.mode, self.node_name)
        for event in itertools.takewhile(lambda event: (event.mode, event.node) == here, reversed(self.events)):
            entered.difference_update(D.leaves(event.dim) if event.kind in DECIDING else ())
        for use in itertools.takewhile(lambda use: (use.mode, use.node) == here, reversed(self.uses)):
            entered.difference_update(D.leaves(use.part) if use.role == "consume" else ())
        for atom in entered:
            D.pin((atom,), f"{self.op} does away with it")

    def _ask_origin(self, node: fx.Node, value: Any) -> None:
        """Pins what a user's rule gives out that no operand brought in and no size argument speaks of."""
        inputs = _flat(self.resolve([*node.args, *node.kwargs.values()]))
        known = {atom for part in inputs for atom in D.leaves(sum(part.dims, ()))}
        here = (self.mode, self.node_name)
        for literal in itertools.takewhile(lambda item: (item.mode, item.node) == here, reversed(self.literals)):
            known.update(atom for part in literal.parts for atom in D.leaves(part))
        for part in _flat([value]):
            for atom in D.channels(sum(part.dims, ())):
                if atom not in known:
                    D.pin((atom,), f"the rule of {self.op} does not say where it comes from")

    def _overwritten(self, value: Any) -> Any:
        """A value that is written to in place is no longer just a moved tensor."""
        if not isinstance(value, Value) or value.source is None:
            return value
        self.carry(value)
        return Value(value.dims)

    def _input(self, meta: Any) -> Any:
        if not isinstance(meta, TensorMeta):
            return None
        return Value(tuple(D.new(size, extent=True) for size in meta.shape))

    def _opaque(self, node: fx.Node, meta: Any, why: str = "") -> Any:
        """An op that progc has no rule for, or a wrong one: nothing that goes in or comes out may grow."""
        for value in _flat(self.resolve(list(node.args)) + self.resolve(list(node.kwargs.values()))):
            touched = D.channels(sum(value.dims, ()))
            if any(not atom.reasons for atom in touched):
                self.unknown[self.op] = self.unknown.get(self.op, 0) + 1
            D.pin(touched, why or f"no rule for op {self.op}")
        return fresh_like(meta)


def _holds(value: Value, dim: int) -> bool:
    """True if the dim is one of a tensor's own dims, which can take shares; a repeated one is not."""
    return value.source is not None and bool(value.source.dims[dim])


def _fault(op: str, error: Exception) -> str:
    """A user's rule that fails, in one line."""
    return f"the rule of {op} fails: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def _flat(items: Any) -> Iterable[Value]:
    if isinstance(items, Value):
        yield items
    elif isinstance(items, (list, tuple)):
        for item in items:
            yield from _flat(item)
    elif isinstance(items, dict):
        for item in items.values():
            yield from _flat(item)


def _same_sizes(value: Any, meta: Any) -> bool:
    """True if a rule's dims have the sizes of the op's result; anything else would be a wrong rule."""
    if isinstance(meta, TensorMeta):
        return isinstance(value, Value) and value.shape == meta.shape
    if isinstance(meta, tuple):
        return isinstance(value, (list, tuple)) and len(value) == len(meta) and all(map(_same_sizes, value, meta))
    return True
