"""The skip path of a residual block: from its exit back to its entry, and the branches added on the way.

With every branch silent the block computes what stands on this path. It is the identity if the movements on the
path cancel, literal factors multiply to one, an activation is applied to what it already was applied to
(relu(relu(x)) = relu(x)), and a norm to what it has normalised already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import fx

from progc.demand.operations import POINTWISE, DemandRefused, describe, is_float, is_product, op_name, shape_of
from progc.demand.steps import moved, moves
from progc.errors import NotLosslessError
from progc.program import Program, TensorMeta

IDEMPOTENT = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "abs"}
NORMS = {"layer_norm", "rms_norm"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation on the skip path, the values it takes from there, and for a sum the branch that is added."""

    kind: Literal["add", "move", "factor", "idempotent", "norm", "same"]
    node: fx.Node
    sources: tuple[fx.Node, ...]
    branch: fx.Node | None = None


@dataclasses.dataclass(frozen=True)
class Skip:
    """A skip path as steps, entry first; it may part and join again (a class token that is updated alone)."""

    entry: fx.Node
    exit: fx.Node
    steps: tuple[Step, ...]

    @property
    def branches(self) -> tuple[fx.Node, ...]:
        """What has to be silent."""
        return tuple(step.branch for step in self.steps if step.branch is not None)

    @property
    def norms(self) -> tuple[fx.Node, ...]:
        """Normalisations on the path, in order."""
        return tuple(step.node for step in self.steps if step.kind == "norm")


def skips(entry: fx.Node, exit_: fx.Node, limit: int = 64) -> Iterator[Skip]:
    """All paths from entry to exit that may be a skip, at most `limit` operations long."""
    if exit_ is entry:
        yield Skip(entry, exit_, ())
        return
    if limit == 0 or exit_.op != "call_function":
        return
    for step in _steps_back(exit_):
        for parts in _products(entry, step.sources, limit - 1):
            known: dict[fx.Node, Step] = {}
            if all(known.setdefault(one.node, one) == one for part in parts for one in part.steps):
                yield Skip(entry, exit_, (*known.values(), step))


def _products(entry: fx.Node, sources: Sequence[fx.Node], limit: int) -> Iterator[tuple[Skip, ...]]:
    """A path to each of the sources, in all combinations."""
    if not sources:
        yield ()
        return
    for first in skips(entry, sources[0], limit):
        for rest in _products(entry, sources[1:], limit):
            yield (first, *rest)


def _steps_back(node: fx.Node) -> Iterator[Step]:
    name = op_name(node)
    if name in ("add", "sub") and all(is_float(item) for item in node.args[:2]):
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        if shape_of(left) == shape_of(node):
            yield Step("add", node, (left,), right)
        if name == "add" and shape_of(right) == shape_of(node) and node.kwargs.get("alpha", 1) == 1:
            yield Step("add", node, (right,), left)
        return
    operands = tuple(operand for operand in node.all_input_nodes if is_float(operand))
    if not operands or not isinstance(node.meta.get("tensor"), TensorMeta):
        return
    first = node.args[0] if isinstance(node.args[0], fx.Node) else operands[0]
    if is_product(node) and isinstance(node.args[1], (int, float)):
        yield Step("factor", node, (first,))
    elif name in IDEMPOTENT:
        yield Step("idempotent", node, (first,))
    elif name in NORMS:
        yield Step("norm", node, (first,))
    elif name in POINTWISE and name != "neg":
        yield Step("same", node, (first,))
    elif moves(node) and name != "getitem":
        yield Step("move", node, operands)


@dataclasses.dataclass(frozen=True)
class _State:
    """What is known of a value on the path: where each element of the entry went, times what, after which phi."""

    ticket: torch.Tensor
    factor: float
    applied: frozenset[tuple[object, ...]]


def check_identity(program: Program, skip: Skip) -> None:
    """Whether the path computes the identity once its branches are silent; norms are not judged here.

    Raises:
        NotLosslessError: names the operation that changes the value.
    """
    shape = shape_of(skip.entry)
    # From 1 on: 0 is what padding puts in.
    ticket = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).reshape(shape)
    start = _State(ticket, 1.0, frozenset([_application(_producer(skip.entry))]))
    states = {skip.entry: start}
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


def _after(program: Program, step: Step, before: Sequence[_State], ticket: torch.Tensor) -> _State:
    state, node = before[0], step.node
    if step.kind == "move":
        if len({one.factor for one in before}) > 1:
            raise NotLosslessError(f"{describe(node)} joins values that were multiplied by different factors")
        value = moved(program, node, {source: one.ticket for source, one in zip(step.sources, before, strict=True)})
        return _State(value, state.factor, frozenset.intersection(*(one.applied for one in before)))
    if step.kind == "factor":
        literal = node.args[1]
        assert isinstance(literal, (int, float))
        factor = state.factor * literal if op_name(node) == "mul" else state.factor / literal
        return dataclasses.replace(state, factor=factor)
    if step.kind == "idempotent" and _application(node) not in state.applied:
        raise NotLosslessError(f"{describe(node)} changes the value that a silent block should pass on")
    if step.kind == "norm":
        if not _equal(state.ticket, ticket):
            raise NotLosslessError(f"{describe(node)} normalises over other dims than the block's entry has")
        return dataclasses.replace(state, applied=frozenset())
    return state


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _application(node: fx.Node) -> tuple[object, ...]:
    return (op_name(node), *(repr(item) for item in node.args[1:]), repr(dict(node.kwargs)))


def _producer(node: fx.Node) -> fx.Node:
    """The operation that computed a value, before anything that only moves it about."""
    while node.op == "call_function" and (moves(node) or op_name(node) in ("clone", "contiguous", "dropout")):
        first = node.args[0]
        if not isinstance(first, fx.Node) or len([n for n in node.all_input_nodes if is_float(n)]) != 1:
            break
        node = first
    return node


def _dtype(node: fx.Node) -> torch.dtype:
    meta = node.meta["tensor"]
    if not isinstance(meta, TensorMeta):
        raise DemandRefused(f"{describe(node)} is not one tensor")
    return meta.dtype
