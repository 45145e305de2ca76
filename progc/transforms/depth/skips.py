"""Finds the skip path of a residual block, from its exit back to its entry, and the branches added on the way.

With every branch silent, the block computes what is on this path. It is the identity if reshapes and permutations on
the path cancel, literal factors multiply to one, an activation is applied to its own output (relu(relu(x)) = relu(x)),
and a norm to a value that it has normalised already. A block without such a path may have one that leads through its
layers, which then have to be set to the identity (`progc/transforms/depth/layers.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import fx

from progc.analysis.demand.steps import moved, moves
from progc.errors import NotLosslessError
from progc.ir.operations import (
    FEATURE_NORMS,
    PADDING,
    POINTWISE,
    DemandRefused,
    describe,
    is_float,
    is_product,
    op_name,
    shape_of,
)
from progc.ir.program import Program, TensorMeta
from progc.transforms.depth.layers import Layer, layers_at, passed_on

IDEMPOTENT = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "abs"}
_RELU = ("relu", "{}")
_KEEP_ZERO = frozenset([_RELU, ("relu6", "{}"), ("abs", "{}")])
_SELECTING = {f"{kind}max_pool{dim}d" for kind in ("", "adaptive_") for dim in (1, 2, 3)} | {
    "clone", "contiguous", "alias", "detach"
}  # fmt: skip
_SCALING = {f"{kind}avg_pool{dim}d" for kind in ("", "adaptive_") for dim in (1, 2, 3)} | {"mean", "sum", "dropout"}


@dataclasses.dataclass(frozen=True)
class SkipStep:
    """One operation on the skip path: the values it reads from the path, and for a sum the branch that is added.

    `layer` describes how a layer with parameters is set to the identity.
    """

    kind: Literal["add", "move", "factor", "idempotent", "norm", "same", "layer"]
    node: fx.Node
    sources: tuple[fx.Node, ...]
    branch: fx.Node | None = None
    layer: Layer | None = None


@dataclasses.dataclass(frozen=True)
class Skip:
    """A skip path as steps, entry first. It may split and join again (a class token that is updated alone)."""

    entry: fx.Node
    exit: fx.Node
    steps: tuple[SkipStep, ...]
    others: tuple[fx.Node, ...] = ()
    """Further entries of the block, which may join the path (image and text tokens in one sequence) and part again."""

    @property
    def branches(self) -> tuple[fx.Node, ...]:
        """Values that must be zero for the block to be the identity."""
        return tuple(step.branch for step in self.steps if step.branch is not None)

    @property
    def norms(self) -> tuple[fx.Node, ...]:
        """Normalisations on the path, in order."""
        return tuple(step.node for step in self.steps if step.kind == "norm")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers on the path that have to become the identity, in order."""
        return tuple(step.layer for step in self.steps if step.layer is not None)


def skips(
    entry: fx.Node, exit_: fx.Node, through_layers: bool = False, limit: int = 64, others: Sequence[fx.Node] = ()
) -> Iterator[Skip]:
    """Returns all paths from entry to exit that may be a skip, at most `limit` operations long.

    Args:
        others: the block's other entries.
        through_layers: whether the path may contain linear layers and BatchNorm.
    """
    beside = tuple(other for other in dict.fromkeys(others) if other is not entry)
    found = _Paths(entry, through_layers, beside)
    for steps in found.to(exit_, limit):
        yield Skip(entry, exit_, steps, beside)


class _Paths:
    """The search for paths that start at one entry."""

    def __init__(self, entry: fx.Node, through_layers: bool, others: tuple[fx.Node, ...]) -> None:
        self.entry, self.through_layers, self.others = entry, through_layers, others
        self.behind = {entry}  # the nodes that depend on the entry; every path consists of them
        todo = [entry]
        while todo:
            for user in todo.pop().users:
                if user not in self.behind:
                    self.behind.add(user)
                    todo.append(user)

    def to(self, goal: fx.Node, limit: int) -> Iterator[tuple[SkipStep, ...]]:
        """Steps from the entry to `goal`."""
        if goal is self.entry or goal in self.others:
            yield ()
            return
        if limit == 0 or goal.op != "call_function" or goal not in self.behind:
            return
        for step in _steps_back(goal, self.through_layers):
            for parts in self._to_all(step.sources, limit - 1):
                known: dict[fx.Node, SkipStep] = {}
                if all(known.setdefault(one.node, one) == one for part in parts for one in part):
                    yield (*known.values(), step)

    def _to_all(self, sources: Sequence[fx.Node], limit: int) -> Iterator[tuple[tuple[SkipStep, ...], ...]]:
        """A path to each of the sources, in all combinations."""
        if not sources:
            yield ()
            return
        for first in self.to(sources[0], limit):
            for rest in self._to_all(sources[1:], limit):
                yield (first, *rest)


def _steps_back(node: fx.Node, through_layers: bool) -> Iterator[SkipStep]:
    name = op_name(node)
    if name in ("add", "sub") and all(is_float(item) for item in node.args[:2]):
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        if shape_of(left) == shape_of(node):
            yield SkipStep("add", node, (left,), right)
        if name == "add" and shape_of(right) == shape_of(node) and node.kwargs.get("alpha", 1) == 1:
            yield SkipStep("add", node, (right,), left)
        return
    operands = tuple(operand for operand in node.all_input_nodes if is_float(operand))
    if not operands or not isinstance(node.meta.get("tensor"), TensorMeta):
        return
    first = node.args[0] if isinstance(node.args[0], fx.Node) else operands[0]
    if is_product(node) and isinstance(node.args[1], (int, float)):
        yield SkipStep("factor", node, (first,))
    elif name in IDEMPOTENT:
        yield SkipStep("idempotent", node, (first,))
    elif name in FEATURE_NORMS:
        yield SkipStep("norm", node, (first,))
    elif name in POINTWISE and name != "neg":
        yield SkipStep("same", node, (first,))
    elif moves(node) and name != "getitem":
        yield SkipStep("move", node, operands)
    elif through_layers:
        layer = None
        for layer in layers_at(node):
            yield SkipStep("layer", node, (layer.source,), layer=layer)
        if layer is None and len(operands) == 1 and shape_of(first) == shape_of(node):
            yield SkipStep("idempotent", node, (first,))  # another activation: the check names it


@dataclasses.dataclass(frozen=True)
class _State:
    """What is known about a value on the path: the element of the entry, its factor, and the activations applied."""

    ticket: torch.Tensor
    factor: float
    applied: frozenset[tuple[object, ...]]


def check_identity(program: Program, skip: Skip) -> None:
    """Checks that the path computes the identity once its branches are silent; norms are not checked here.

    Raises:
        NotLosslessError: names the operation that changes the value.
    """
    shape = shape_of(skip.entry)
    # Starts at 1: padding inserts 0.
    ticket = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).reshape(shape)
    start = _State(ticket, 1.0, _applied(skip.entry))
    states = {skip.entry: start}
    for position, other in enumerate(skip.others):
        # Negative and distinct, so that no element of another entry is mistaken for one of this entry.
        own = -1.0 - torch.arange(torch.Size(shape_of(other)).numel(), dtype=torch.float64) - position * 2.0**40
        states[other] = _State(own.reshape(shape_of(other)), 1.0, _applied(other))
    for step in skip.steps:
        states[step.node] = _after(program, step, [states[source] for source in step.sources], ticket)
        if torch.promote_types(_dtype(skip.entry), _dtype(step.node)) != _dtype(step.node):
            raise NotLosslessError(f"{describe(step.node)} rounds the value that a silent block should pass on")
    end = states[skip.exit]
    if end.factor != 1.0:
        raise NotLosslessError(
            f"the skip path of the block is multiplied by {end.factor:.6g}, so a silent block is not the identity"
        )
    if not _equal(end.ticket, ticket):
        raise NotLosslessError("the skip path of the block rearranges its value, so a silent block is not the identity")


def _after(program: Program, step: SkipStep, before: Sequence[_State], ticket: torch.Tensor) -> _State:
    state, node = before[0], step.node
    if step.kind == "move":
        if len({one.factor for one in before}) > 1:
            raise NotLosslessError(f"{describe(node)} combines values that were multiplied by different factors")
        value = moved(program, node, {source: one.ticket for source, one in zip(step.sources, before, strict=True)})
        return _State(value, state.factor, frozenset.intersection(*(one.applied for one in before)))
    if step.kind == "factor":
        literal = node.args[1]
        assert isinstance(literal, (int, float))
        factor = state.factor * literal if op_name(node) == "mul" else state.factor / literal
        return dataclasses.replace(state, factor=factor)
    if step.layer is not None:
        return dataclasses.replace(state, ticket=passed_on(step.layer, state.ticket))
    if step.kind == "idempotent" and _application(node) not in state.applied:
        raise NotLosslessError(f"{describe(node)} changes the value that a silent block should pass on")
    if step.kind == "norm":
        if not _equal(state.ticket, ticket):
            raise NotLosslessError(f"{describe(node)} normalises over dims that the block's entry does not have")
        return dataclasses.replace(state, applied=frozenset())
    return state


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _application(node: fx.Node) -> tuple[object, ...]:
    return (op_name(node), *(repr(item) for item in node.args[1:]), repr(dict(node.kwargs)))


_Known = dict[fx.Node, frozenset[tuple[object, ...]]]


def _applied(node: fx.Node, known: _Known | None = None) -> frozenset[tuple[object, ...]]:
    """The idempotent activations that produced these values; applying one of them again changes nothing."""
    known = {} if known is None else known
    if node not in known:
        known[node] = frozenset()
        known[node] = _applied_by(node, known) if node.op == "call_function" else frozenset()
    return known[node]


def _applied_by(node: fx.Node, known: _Known) -> frozenset[tuple[object, ...]]:
    name = op_name(node)
    if name in IDEMPOTENT:
        return frozenset([_application(node)])
    operands = [n for n in node.all_input_nodes if is_float(n)]
    joins = moves(node) or (name in ("add", "mul") and len(operands) == 2)
    if not (joins or name in _SELECTING or name in _SCALING) or not operands:
        return frozenset()
    common = _applied(operands[0], known)
    for operand in operands[1:] if joins else ():
        common = common & _applied(operand, known) if common else common
    if name in _SELECTING or (moves(node) and name not in PADDING):
        return common
    return common & (_KEEP_ZERO if name in PADDING else {_RELU})  # only the sign of the other values is known


def _dtype(node: fx.Node) -> torch.dtype:
    meta = node.meta["tensor"]
    if not isinstance(meta, TensorMeta):
        raise DemandRefused(f"{describe(node)} is not a single tensor")
    return meta.dtype
