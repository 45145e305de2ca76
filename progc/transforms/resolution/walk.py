"""Walks over a graph at two input sizes side by side.

Every operation is evaluated at the new size on layouts, without values. Its rule says how the parts of the operands'
dims make up those of the result, and which literals change with them. Most operations need no rule: a dim with the size
of an operand's dim has the same parts, and any other dim is a new part.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from progc.errors import one_line
from progc.ir.devices import captured_device
from progc.ir.layouts import Evaluator, Layout
from progc.ir.operations import op_name
from progc.ir.program import Mode, Program, TensorMeta
from progc.lift.extents import (
    Dim,
    Key,
    Misfit,
    cuts_of,
    fixed,
    grows,
    new_size,
    old_size,
    sized,
)  # fmt: skip
from progc.transforms.resolution.choices import Choices
from progc.transforms.resolution.values import BatchSize, Path, SizeClash, SizedArgs, SizedValue, SizeFacts

Rule = Callable[["Walk", fx.Node, SizedArgs], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of operations, by ATen name without overload and in-place underscore."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


class Walk(Choices):
    """One walk over one graph.

    Attributes:
        inputs: values of the placeholders.
        retargets: operations that are replaced by another one, by node.
        lookups: `(table, index)`: tensors whose rows are looked up by the values of another tensor.
    """

    def __init__(self, program: Program, mode: Mode, facts: SizeFacts, inputs: Sequence[Any]) -> None:
        super().__init__(program, mode, facts)
        self.inputs = list(inputs)
        self.retargets: dict[str, Any] = {}
        self.lookups: set[tuple[str, str]] = set()
        self._patched: dict[str, Layout] = {}
        self._here: dict[Path, int] = {}

    def run(self) -> None:
        """Walks the graph.

        Raises:
            Clash: sizes that contradict each other under the present facts.
            Indivisible: a size that a cut or a stride does not divide.
        """
        inputs = iter(self.inputs)
        with Evaluator() as self.evaluator:
            for node in self.program.graphs[self.mode].nodes:
                self.node, self._count = node, 0
                self._here, self._patched = {}, {}
                if node.op == "placeholder":
                    self.values[node.name] = next(inputs)
                elif node.op == "get_attr":
                    self.values[node.name] = self.tensor(str(node.target))
                elif node.op == "call_function":
                    try:
                        self.values[node.name] = self._visit(node)
                    except Misfit as misfit:
                        raise SizeClash(str(misfit), self._touching(), self.where()) from misfit

    # -- values -----------------------------------------------------------------------------------------

    def resolve(self, raw: Any) -> Any:
        """Turns a graph argument into values, sizes and plain data."""
        if isinstance(raw, fx.Node):
            return self.values[raw.name]
        if isinstance(raw, (list, tuple)):
            return [self.resolve(item) for item in raw]
        return raw

    def tensor(self, name: str) -> SizedValue:
        """Returns a tensor of the program, with the dims that follow the image at their new size."""
        tensor = self.program.tensors[name]
        layout = dataclasses.replace(Layout.of(tensor), device=captured_device(self.program, tensor))
        return self.free(("tensor", name), layout, name)

    def free(self, owner: tuple[str, ...], layout: Layout, table: str | None = None) -> SizedValue:
        """Returns a value whose sizes may follow the image."""
        dims = tuple(self.facts.dim(owner, index, size) for index, size in enumerate(layout.shape))
        return SizedValue(dims, _at(layout, dims), table)

    def _visit(self, node: fx.Node) -> Any:
        meta = node.meta.get("tensor")
        if isinstance(meta, int):
            return self._number(node, meta)
        if node.target is operator.getitem:
            return self.values[node.args[0].name][node.args[1]]  # type: ignore[union-attr, index]
        if not isinstance(node.target, torch._ops.OpOverload):
            raise SizeClash(f"{self.where()} is not an operation on tensors", where=self.where())
        args = SizedArgs(self.resolve, node)
        name = op_name(node)
        found = RULES.get(name)
        dims: Any = None
        if found is not None:
            dims = found(self, node, args)
        elif torch.Tag.pointwise in node.target.tags or name in _POINTWISE:
            dims = broadcast(self, list(args.tensors()))
        pointwise = torch.Tag.pointwise in node.target.tags
        if pointwise:
            self._scalars(node, args)
        value = self._fitted(meta, self._evaluate(node), dims, list(args.tensors()))
        if isinstance(value, SizedValue) and (pointwise or name in _MOVING or name == "arange"):
            counts = any(operand.counts for operand in args.tensors()) or (name == "arange" and grows(value.dims[0]))
            value = dataclasses.replace(value, counts=counts)
        if isinstance(value, SizedValue) and name == "sum":
            own = args.first()
            old, new = (math.prod(a) // max(math.prod(b), 1) for a, b in ((own.old, value.old), (own.new, value.new)))
            value = dataclasses.replace(value, summed=(old, new))
        return value

    def _scalars(self, node: fx.Node, args: SizedArgs) -> None:
        """Handles numbers next to a tensor that may be sizes: the count of a mean follows, others are refused.

        Raises:
            Clash: positions are counted and compared with a number that may be their count.
        """
        for value in args.tensors():
            for place, number in enumerate(node.args):
                if isinstance(number, bool) or not isinstance(number, (int, float)) or place == 0:
                    continue
                if value.summed is not None and value.summed[0] != value.summed[1]:
                    old, new = value.summed
                    if op_name(node) == "div" and number == old:
                        self.edit((place,), old, new)
                    elif op_name(node) == "mul" and math.isclose(number, 1 / old):
                        raise SizeClash(f"a sum is multiplied by {number:g}, which may be 1/{old}", where=self.where())
                if value.counts and any(grows(dim) and abs(old_size(dim) - number) <= 1 for dim in value.dims):
                    raise SizeClash(f"positions are counted, and {number:g} may be their number", where=self.where())

    def _number(self, node: fx.Node, meta: int) -> BatchSize:
        """Sizes that depend on the batch: `sym_size`, and products of it."""
        resolved = [self.resolve(arg) for arg in node.args]
        if isinstance(resolved[0], SizedValue):
            return BatchSize(meta, resolved[0].layout.shape[int(resolved[1])])
        new = node.target(*(item.new if isinstance(item, BatchSize) else item for item in resolved))  # type: ignore[operator]
        return BatchSize(meta, int(new))

    def _evaluate(self, node: fx.Node) -> Any:
        args, kwargs = self._given(node)
        try:
            return self.evaluator.call(node.target, args, kwargs)
        except Exception as error:  # kernels raise many types
            if node.target is torch.ops.aten.view.default:  # memory that was contiguous at the old size
                self.retargets[node.name] = torch.ops.aten.reshape.default
                try:
                    return self.evaluator.call(torch.ops.aten.reshape.default, args, kwargs)
                except Exception:  # the first error says more
                    pass
            reason = one_line(error)
            raise SizeClash(reason, self._touching(), self.where()) from error

    def _given(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments at the new size."""

        def given(raw: Any, path: Path) -> Any:
            if path in self._here:
                return self._here[path]
            if isinstance(raw, fx.Node):
                value = self.values[raw.name]
                if raw.name in self._patched:
                    return self._patched[raw.name]
                return _plain(value)
            if isinstance(raw, (list, tuple)):
                return type(raw)(given(item, (*path, index)) for index, item in enumerate(raw))
            return raw

        args = tuple(given(raw, (index,)) for index, raw in enumerate(node.args))
        return args, {name: given(raw, (name,)) for name, raw in node.kwargs.items()}

    def _touching(self) -> frozenset[Key]:
        operands = [self.values.get(item.name) for item in self.node.all_input_nodes]
        return cuts_of(dim for value in operands if isinstance(value, SizedValue) for dim in value.dims)

    def _fitted(self, meta: Any, result: Any, dims: Any, operands: list[SizedValue]) -> Any:
        """Values of the results: the dims of the rule if they have the right sizes, else dims that are guessed."""
        if isinstance(meta, tuple):
            many = dims if dims is not None else [None] * len(meta)
            pairs = zip(meta, result, many, strict=True)
            return [self._fitted(item, part, own, operands) for item, part, own in pairs]
        if not isinstance(meta, TensorMeta):
            return None
        assert isinstance(result, Layout)
        table = self._moved(operands) if len(operands) == 1 else None
        if dims is not None:
            dims = tuple(dims)
            if tuple(map(old_size, dims)) != meta.shape or tuple(map(new_size, dims)) != result.shape:
                found = f"{list(meta.shape)} should become {list(map(new_size, dims))}, but is {list(result.shape)}"
                raise SizeClash(found, self._touching(), self.where())
            return SizedValue(dims, result, table)
        for operand in operands[:1]:
            if operand.old == meta.shape and operand.new == result.shape:
                return SizedValue(operand.dims, result, table)
        return SizedValue(tuple(self._guess(operands, index, *pair) for index, pair in _pairs(meta, result)), result)

    def _moved(self, operands: list[SizedValue]) -> str | None:
        return operands[0].table if op_name(self.node) in _MOVING else None

    def _guess(self, operands: list[SizedValue], index: int, old: int, new: int) -> Dim:
        """The parts of a dim of sizes `old`, `new` in a result without a rule."""
        if old == new:
            return fixed(old)
        for operand in operands:
            own = operand.dims[index : index + 1]
            for dim in (*own, *operand.dims):
                if (old_size(dim), new_size(dim)) == (old, new):
                    return dim
        return sized(old, new, cuts_of(dim for operand in operands for dim in operand.dims))

    # -- what rules say ---------------------------------------------------------------------------------

    def edit(self, path: Path, old: int, new: int) -> None:
        """Replaces the argument at `path`, `old`, by `new`."""
        self._here[path] = new
        if old != new:
            self.edits[self.node.name, path] = (old, new)

    def sizes(self, path: Path, given: Sequence[Any], dims: Sequence[Dim]) -> None:
        """Replaces the list of sizes at `path` by that of `dims`."""
        for position, (item, dim) in enumerate(zip(given, dims, strict=True)):
            if isinstance(item, BatchSize):
                if item.new != new_size(dim):
                    place = (*path, position)
                    self._here[place] = new_size(dim)
                    self.edits[self.node.name, place] = (item.old, new_size(dim))
            elif item != -1:
                self.edit((*path, position), item, new_size(dim))

    def literal(self, index: int, size: int) -> Dim:
        """Returns a size that the present operation creates itself: dim `index` of its result."""
        return self.facts.dim(("literal", self.mode, self.node.name), index, size)

    def take(self, operand: fx.Node, dims: Sequence[Dim]) -> None:
        """Assigns these dims to `operand` for the present operation; the next walk starts with them."""
        value = self.values[operand.name]
        if value.new != tuple(map(new_size, dims)):
            self._patched[operand.name] = _at(value.layout, dims)


def broadcast(walk: Walk, values: list[SizedValue]) -> list[Dim]:
    """Dims of a pointwise operation; free operands follow the others."""
    rank = max((len(value.dims) for value in values), default=0)
    out: list[Dim] = []
    for position in range(-rank, 0):
        own = [(value, value.dims[position]) for value in values if len(value.dims) >= -position]
        wide = [(value, dim) for value, dim in own if old_size(dim) != 1]
        if not wide:  # one position may become several
            out.append(max((dim for _, dim in own), key=new_size))
            continue
        if any(new_size(dim) != 1 for value, dim in own if old_size(dim) == 1):
            raise SizeClash("one position would become several", walk._touching(), walk.where())
        out.append(walk.meet([dim for _, dim in wide], [value for value, _ in wide]))
    patch(walk, out)
    return out


def patch(walk: Walk, dims: Sequence[Dim]) -> None:
    """Gives operands of a broadcasting operation the sizes that they will have in the next walk."""
    for operand in walk.node.all_input_nodes:
        value = walk.values[operand.name]
        if isinstance(value, SizedValue):
            own = [dim if old_size(dim) == 1 else dims[index - len(value.dims)] for index, dim in enumerate(value.dims)]
            walk.take(operand, own)


def _at(layout: Layout, dims: Sequence[Dim]) -> Layout:
    """The layout at the new sizes: unchanged if they are the old ones, else contiguous."""
    shape = tuple(map(new_size, dims))
    if shape == layout.shape:
        return layout
    strides = [1] * len(shape)
    for index in range(len(shape) - 2, -1, -1):
        strides[index] = strides[index + 1] * max(shape[index + 1], 1)
    return Layout(shape, tuple(strides), layout.dtype, layout.device)


def _plain(value: Any) -> Any:
    if isinstance(value, SizedValue):
        return value.layout
    if isinstance(value, BatchSize):
        return value.new
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _pairs(meta: TensorMeta, result: Layout) -> Any:
    return enumerate(zip(meta.shape, result.shape, strict=True))


_MOVING = frozenset(
    "view reshape _unsafe_view flatten permute transpose t unsqueeze squeeze contiguous clone to _to_copy "
    "expand slice detach alias".split()
)
"""Operations that move values and do not change them."""

_POINTWISE: Mapping[str, None] = dict.fromkeys("where lerp masked_fill addcmul addcdiv copy".split())
