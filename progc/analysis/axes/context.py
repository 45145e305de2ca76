"""The state of the axis analysis, and the methods by which rules of operations record their statements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import (
    Event,
    Literal,
    MovedTensor,
    Use,
    Value,
    length_roots,
)
from progc.ir.program import Mode, Program

_LENGTH_LEFT = "a vector norm is taken over it, and growth would leave a factor"


class Context:
    """State of the analysis: dims of tensors and values, and everything that rules record.

    Attributes:
        tensor_dims: tensor name to its factored dims.
        events, uses, literals: what rules recorded so far, in both graphs.
        unknown: ops without a rule that touched channel axes, with counts.
        values: node name to its `Value`, in the graph that is being walked.
        value_dims: (graph, node name) to `Value`, in both graphs.
        mode, node_name, op: the graph, node and op whose rule is running.
        decided: ids of operand values whose lengths the rule has handled itself.
    """

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
        """Converts an argument of the graph to `Value`s, ints and plain data."""
        if isinstance(raw, fx.Node):
            return self.values[raw.name]
        if isinstance(raw, (list, tuple)):
            return [self.resolve(item) for item in raw]
        return raw

    def tensor(self, name: str) -> Value:
        """Returns the value of a parameter, buffer or constant."""
        tensor = self.program.tensors[name]
        if name not in self.tensor_dims:
            dims = tuple(D.new(size) for size in tensor.shape)
            self.tensor_dims[name] = dims
            if not tensor.is_floating_point():
                for dim in dims:
                    D.pin(dim, "the tensor holds indices or flags")
        dims = self.tensor_dims[name]
        return Value(dims, MovedTensor(name, tuple(frozenset((i,)) for i in range(len(dims)))), constant=True)

    # -- what rules state -------------------------------------------------------------------------------

    def unify(self, a: Dim, b: Dim) -> None:
        """States that two dims are one axis. If their layouts cannot be aligned, both are pinned."""
        try:
            D.unify(a, b)
        except D.Clash as clash:
            if D.channels(a + b):
                for dim in (a, b):
                    D.pin(dim, f"{self.op} combines two layouts that cannot be aligned ({clash})")

    def pin(self, dim: Dim, reason: str) -> None:
        """Forbids growth of a dim."""
        D.pin(dim, reason)

    def pin_lengths(self, value: Value) -> None:
        """Forbids growth of the dims that the lengths of `value` were taken over."""
        for dim, _ in value.lengths:
            self.pin(D.channels(dim), _LENGTH_LEFT)

    def event(self, kind: str, dim: Dim, *operands: str, root: bool = False) -> None:
        """Records what the current op does with `dim`; extents are ignored."""
        if D.channels(dim):
            self.events.append(Event(kind, dim, self.mode, self.node_name, self.op, operands, root))

    def literal(self, path: tuple[int | str, ...], *parts: Dim, value: float | None = None) -> None:
        """States that the argument at `path` is the total size of `parts`, or grows with them from `value`."""
        if any(D.channels(part) for part in parts):
            self.literals.append(Literal(self.mode, self.node_name, path, parts, value))

    def sizes(self, args: Args, name: str, dims: Sequence[Dim]) -> None:
        """States that the argument `name` is a list of sizes, one per dim (a graph node stands for the batch size)."""
        raw = args.nodes[name]
        for position, dim in enumerate(dims):
            if isinstance(raw[position], fx.Node) or raw[position] not in (-1, 1):
                self.literal((*args.paths[name], position), dim)

    def carry(self, *values: Value | None) -> None:
        """States that the units of these tensors correspond one to one to units of the result."""
        for value in values:
            if value is not None and value.source is not None:
                self.carry_dims(value, range(len(value.dims)))

    def carry_dims(self, value: Value, dims: Iterable[int]) -> None:
        """Like `carry`, for selected dims of a tensor."""
        if value.source is not None:
            for dim in dims:
                self._use(value, dim, "carry")

    def consume(self, value: Value, dim: int, operand: str | None) -> bool:
        """States that a tensor contracts `dim`. Returns False for an activation, which cannot absorb the shares."""
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
        """States that the op sums `a * b` over a dim. A parameter takes the shares; without one, a factor is owed."""
        self.unify(a.dims[dim_a], b.dims[dim_b])
        if (a.lengths or b.lengths) and self._over_lengths(a, dim_a, name_a, b, dim_b, name_b):
            return
        can_a, can_b = _holds(a, dim_a), _holds(b, dim_b)
        # A fixed table is not trained: the parameter that it is multiplied with takes the shares.
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
        found = [length_roots(a, a.dims[dim_a]), length_roots(b, b.dims[dim_b])]
        if found == [1, 1]:
            self.event("normalise", a.dims[dim_a])  # k copies, each 1/k of the product: nothing is owed
            return True
        if sorted(found, key=str) == [0, 1] and a.source is None and b.source is None:
            self.event("contract", a.dims[dim_a], name_a, name_b, root=True)
            return True
        for value in (a, b):
            self.pin_lengths(value)
        return False


def _holds(value: Value, dim: int) -> bool:
    """Returns True if the dim is a dim of the tensor itself, which can take shares; a repeated dim cannot."""
    return value.source is not None and bool(value.source.dims[dim])


class Args:
    """The arguments of an op by schema name; graph nodes are replaced by their `Value` (or int for sizes).

    Attributes:
        nodes: argument name to the raw argument of the node.
        paths: argument name to its place in the call, for `Context.literal`; missing for defaults.
    """

    def __init__(self, context: Context, node: fx.Node) -> None:
        self.nodes: dict[str, Any] = {}
        self.paths: dict[str, tuple[int | str, ...]] = {}
        self._values: dict[str, Any] = {}
        schema = node.target._schema  # type: ignore[union-attr]
        for position, argument in enumerate(schema.arguments):
            name = argument.name
            if position < len(node.args):
                raw, self.paths[name] = node.args[position], (position,)
            elif name in node.kwargs:
                raw, self.paths[name] = node.kwargs[name], (name,)
            else:
                raw = argument.default_value if argument.has_default_value() else None
            self.nodes[name] = raw
            self._values[name] = context.resolve(raw)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the argument, or `default` if the op has no argument of that name."""
        return self._values.get(name, default)

    def tensors(self) -> Iterable[Value]:
        """Yields every tensor argument, with lists flattened."""
        for value in self._values.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Value):
                    yield item

    def node_name(self, name: str) -> str:
        """Returns the name of the graph node passed as a tensor argument."""
        node = self.nodes[name]
        assert isinstance(node, fx.Node)
        return node.name
