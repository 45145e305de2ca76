"""Rates of dropout and stochastic depth as arguments of a graph, in place of numbers written into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from progc.notation import target_text

_DROPOUT = ("dropout", "dropout_", "feature_dropout", "feature_dropout_")
aten = torch.ops.aten


def rates_of(nodes: Sequence[fx.Node]) -> dict[fx.Node, float]:
    """Operations that take a rate as a number and can take it as a tensor: each with the rate, in graph order."""
    found: dict[fx.Node, float] = {}
    for node in nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name, args = target_text(node.target, False), node.args
        if name == "dropout" and args[2] and args[1]:
            found[node] = float(args[1])  # type: ignore[arg-type]
        elif name == "bernoulli_" and _only_user(args[0], node):
            keep = args[1] if len(args) > 1 else 0.5  # what torch takes where nothing is given
            if isinstance(keep, float):
                found[node] = keep
        elif name in ("div_", "div") and isinstance(args[1], float) and args[0] in found:
            if name == "div" or _only_user(args[0], node):
                found[node] = args[1]
    return found


def is_nothing(node: fx.Node) -> bool:
    """Whether a node is dropout that drops nothing."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and target_text(node.target, False) == "dropout"
        and not (node.args[1] and node.args[2])
    )


def with_rate(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node], rate: fx.Node) -> fx.Node:
    """The operation of `node`, one of `rates_of`, with the rate as a 0-d tensor; the same distribution."""
    value = env[node.args[0]]  # type: ignore[index]
    name = target_text(node.target, False)
    if name in ("div", "div_"):
        return graph.call_function(aten.div.Tensor, (value, rate))
    if name == "bernoulli_":
        drawn = graph.call_function(aten.rand_like.default, (value,))
        kept = graph.call_function(aten.lt.Tensor, (drawn, rate))
        return graph.call_function(aten.to.dtype, (kept, _dtype(node)))
    drawn = graph.call_function(aten.rand_like.default, (value,))
    kept = graph.call_function(aten.ge.Tensor, (drawn, rate))
    share = graph.call_function(aten.rsub.Scalar, (rate, 1))
    return graph.call_function(aten.div.Tensor, (graph.call_function(aten.mul.Tensor, (value, kept)), share))


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["tensor"].dtype
    return dtype


def _only_user(source: object, node: fx.Node) -> bool:
    return isinstance(source, fx.Node) and list(source.users) == [node]
