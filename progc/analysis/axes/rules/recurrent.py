"""Recurrent layers: rows of their weights are gates x hidden units, the hidden axis is produced and read by itself."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule

_GATES = {"aten.lstm": 4, "aten.gru": 3, "aten.rnn_tanh": 1, "aten.rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(ctx: Context, node: fx.Node, args: Args) -> list[Value]:
    """x `[B, T, I]` or `[T, B, I]`, state `[layers * directions, B, H]` -> `[B, T, directions * H]` and last states.

    Weights per layer and direction: `[gates * H, I]`, `[gates * H, H]` and two biases `[gates * H]`. All units of a
    layer go through the same gates, so copies stay copies; the recurrent weight shares its columns among them.
    """
    x, params, operand = args["input"], list(args["params"]), args.node_name("input")
    states = args["hx"] if isinstance(args["hx"], list) else [args["hx"]]
    layers, directions = args["num_layers"], 2 if args["bidirectional"] else 1
    each = 4 if args["has_biases"] else 2
    if len(params) != each * layers * directions:
        raise ValueError("projections")
    hidden: Dim = states[0].dims[-1]
    for state in states[1:]:
        ctx.unify(hidden, state.dims[-1])
    ctx.carry(*states)
    given: Dim = x.dims[-1]
    for layer in range(layers):
        for direction in range(directions):
            start = each * (layer * directions + direction)
            into, again, *biases = params[start : start + each]
            for weight, read in ((into, given), (again, hidden)):
                ctx.unify(read, weight.dims[1])
                ctx.consume(weight, 1, operand)
            _gated(ctx, (into, again, *biases), hidden)
        given = D.concat([hidden] * directions)
    out = Value((*x.dims[:-1], given))
    return [out, *(Value(tuple(state.dims)) for state in states)]


def _gated(ctx: Context, params: tuple[Any, ...], hidden: Dim) -> None:
    """Dim 0 of every parameter is gates x hidden units."""
    for value in params:
        gates, units = D.reshape([value.dims[0]], [_GATES[ctx.op], D.size_of(hidden)])
        D.pin(gates, "gates")
        ctx.unify(units, hidden)
        ctx.carry_dims(value, [0])
