"""The skip path of a residual block: from its exit back to its entry, and the branches added on the way.

With every branch silent the block computes what stands on this path. It is the identity if the movements on the
path cancel, literal factors multiply to one, an activation is applied to what it already was applied to
(relu(relu(x)) = relu(x)), and a norm to what it has normalised already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from torch import fx

from progc.demand.operations import POINTWISE, DemandRefused, describe, is_float, op_name, shape_of
from progc.demand.steps import moved, moves
from progc.errors import NotLosslessError
from progc.program import Program, TensorMeta

IDEMPOTENT = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "abs"}
NORMS = {"layer_norm", "rms_norm"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation on the skip path, the value it takes from there, and for a sum the branch that is added."""

    kind: Literal["add", "move", "factor", "idempotent", "norm", "same"]
    node: fx.Node
    source: fx.Node
    branch: fx.Node | None = None


@dataclasses.dataclass(frozen=True)
class Skip:
    """A skip path, entry first."""

    entry: fx.Node
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
        yield Skip(entry, ())
        return
    if limit == 0 or exit_.op != "call_function":
        return
    for step in _steps_back(exit_):
        for skip in skips(entry, step.source, limit - 1):
            yield Skip(entry, (*skip.steps, step))


def _steps_back(node: fx.Node) -> Iterator[Step]:
    name = op_name(node)
    tensors = [item for item in node.args[:2] if is_float(item)]
    if name in ("add", "sub") and len(tensors) == 2:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        if shape_of(left) == shape_of(node):
            yield Step("add", node, left, right)
        if name == "add" and shape_of(right) == shape_of(node) and node.kwargs.get("alpha", 1) == 1:
            yield Step("add", node, right, left)
        return
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if first is None or not is_float(first):
        return
    if name in ("mul", "div") and not isinstance(node.args[1], fx.Node):
        yield Step("factor", node, first)
    elif name in IDEMPOTENT:
        yield Step("idempotent", node, first)
    elif name in NORMS:
        yield Step("norm", node, first)
    elif name in POINTWISE and name != "neg":
        yield Step("same", node, first)
    elif (
        moves(node)
        and len([n for n in node.all_input_nodes if is_float(n)]) == 1
        and isinstance(node.meta.get("tensor"), TensorMeta)
    ):
        yield Step("move", node, first)


def check_identity(program: Program, skip: Skip) -> None:
    """Whether the path computes the identity once its branches are silent; norms are not judged here.

    Raises:
        NotLosslessError: names the operation that changes the value.
    """
    size = int(torch.Size(shape_of(skip.entry)).numel())
    ticket = torch.arange(size, dtype=torch.float64).reshape(shape_of(skip.entry))
    value, factor, dtype = ticket, 1.0, _dtype(skip.entry)
    applied = [_application(_producer(skip.entry))]
    for step in skip.steps:
        if step.kind == "move":
            value = moved(program, step.node, step.source, value)
        elif step.kind == "factor":
            literal = step.node.args[1]
            assert isinstance(literal, (int, float))
            factor = factor * literal if op_name(step.node) == "mul" else factor / literal
        elif step.kind == "idempotent":
            if _application(step.node) not in applied:
                raise NotLosslessError(f"{describe(step.node)} changes the value that a silent block should pass on")
        elif step.kind == "norm":
            applied = []
            if value.shape != ticket.shape or not torch.equal(value, ticket):
                raise NotLosslessError(f"{describe(step.node)} normalises over other dims than the block's entry has")
        if not torch.promote_types(dtype, _dtype(step.node)) == _dtype(step.node):
            raise NotLosslessError(f"{describe(step.node)} rounds the value that a silent block should pass on")
        if step.kind == "idempotent":
            applied.append(_application(step.node))
    if factor != 1.0:
        raise NotLosslessError(
            f"the skip path of the block is multiplied by {factor:.6g}, so a silent block is not the identity"
        )
    if value.shape != ticket.shape or not torch.equal(value, ticket):
        raise NotLosslessError("the skip path of the block rearranges its value, so a silent block is not the identity")


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
