"""Turns the rates of dropout and stochastic depth into arguments of a graph, instead of numbers written into it.

`progc/transforms/dropping/find.py` finds the rates. Here, operations that hold one as a number are replaced by
operations that take it as a 0-d tensor, with the same distribution.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from progc.ir.notation import target_text
from progc.ir.operations import argument, op_name
from progc.transforms.dropping.find import DRAWING, find_drops

aten = torch.ops.aten
_WITH_TENSORS = frozenset({"div", "add", "lt", "le", "gt", "ge"})
"""Operations with a number that exist with a tensor in its place."""


@dataclasses.dataclass(frozen=True)
class LiftedRate:
    """A number that becomes an argument: the rate or the keep probability, as `argument` of an operation."""

    argument: str
    value: float


def rates_of(graph: fx.Graph) -> dict[fx.Node, LiftedRate]:
    """Returns the operations of a graph that hold a rate as a number and can take it as a tensor.

    Rates inside of attention, and those of dropout that preserves mean and variance (alpha dropout), stay numbers.
    """
    found: dict[fx.Node, LiftedRate] = {}
    for drop in find_drops(graph):
        for number in drop.numbers:
            node, value = number.node, argument(number.node, number.argument)
            if DRAWING not in node.meta and isinstance(value, float) and value and _can_take(node):
                found[node] = LiftedRate(number.argument, value)
    return found


def _can_take(node: fx.Node) -> bool:
    if op_name(node) == "bernoulli":  # drawn in place, into a tensor that has no other reader
        source = node.args[0]
        return isinstance(source, fx.Node) and list(source.users) == [node]
    return target_text(node.target, False) == "dropout" or op_name(node) in _WITH_TENSORS


def is_nothing(node: fx.Node) -> bool:
    """Returns whether a node is dropout that drops nothing."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and target_text(node.target, False) == "dropout"
        and not (node.args[1] and node.args[2])
    )


def with_rate(graph: fx.Graph, node: fx.Node, rate: LiftedRate, env: dict[fx.Node, fx.Node], given: fx.Node) -> fx.Node:
    """Adds the operation of `node`, one of `rates_of`, with the 0-d tensor `given` as its number; returns the node."""
    value = env[node.args[0]]  # type: ignore[index]
    name = op_name(node)
    if name == "bernoulli":
        kept = graph.call_function(aten.lt.Tensor, (_drawn(graph, value), given))
        return graph.call_function(aten.to.dtype, (kept, node.meta["tensor"].dtype))
    if name == "dropout":
        kept = graph.call_function(aten.ge.Tensor, (_drawn(graph, value), given))
        share = graph.call_function(aten.rsub.Scalar, (given, 1))
        return graph.call_function(aten.div.Tensor, (graph.call_function(aten.mul.Tensor, (value, kept)), share))
    target = getattr(getattr(aten, target_text(node.target, False)), "Tensor")  # noqa: B009
    return graph.call_function(target, (value, given))


def _drawn(graph: fx.Graph, value: fx.Node) -> fx.Node:
    return graph.call_function(aten.rand_like.default, (value,))
