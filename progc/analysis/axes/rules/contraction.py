"""Rules of ops that multiply and sum.

In the order of the file: linear, matrix products and einsum; attention and softmax; products with one weight per group
of rows (mixture of experts); and recurrent layers, whose hidden axis is both produced and read by the layer.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import Value, length_roots
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.pointwise import broadcast


@rule("linear")
def linear(ctx: Context, node: fx.Node, args: Args) -> Value:
    """`y[..., o] = sum_i x[..., i] w[o, i] + b[o]`."""
    x, weight, bias = args["input"], args["weight"], args["bias"]
    ctx.contract(x, -1, args.node_name("input"), weight, 1, args.node_name("weight"))
    out = weight.dims[0]
    ctx.carry_dims(weight, [0])
    if bias is not None:
        ctx.unify(out, bias.dims[0])
        ctx.carry(bias)
    return Value((*x.dims[:-1], out), constant=x.constant and weight.constant)


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Batched matrix product with broadcasting, 1-D operands included."""
    values = list(args.tensors())
    names = [raw.name for raw in args.nodes.values() if isinstance(raw, fx.Node)]
    return _matmul(ctx, values[0], names[0], values[1], names[1])


def _matmul(ctx: Context, a: Value, name_a: str, b: Value, name_b: str) -> Value:
    row = len(a.dims) > 1
    column = len(b.dims) > 1
    in_b = -2 if column else -1
    ctx.contract(a, -1, name_a, b, in_b, name_b)
    lead = broadcast(ctx, [Value(a.dims[:-2]), Value(b.dims[:-2])])
    for dim in lead:
        ctx.event("heads", dim)
    if a.source is None and b.source is None:
        for dim in (*a.dims[-2:], b.dims[-1]):
            ctx.event("head dim", dim)
    ctx.carry_dims(a, list(range(len(a.dims) - 1)))
    ctx.carry_dims(b, [i for i in range(len(b.dims)) if i != len(b.dims) + in_b])
    rows = (a.dims[-2],) if row else ()
    columns = (b.dims[-1],) if column else ()
    return Value((*lead, *rows, *columns), constant=a.constant and b.constant)


@rule("outer", "ger")
def outer(ctx: Context, node: fx.Node, args: Args) -> Value:
    """`[I]`, `[J]` -> `[I, J]`."""
    a, b = args.tensors()
    ctx.carry(a, b)
    return Value((*a.dims, *b.dims), constant=a.constant and b.constant)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def addmm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Matrix product plus a broadcast bias."""
    names = [name for name in args.nodes if isinstance(args.nodes[name], fx.Node)]
    bias, a, b = (args[name] for name in names[:3])
    out = _matmul(ctx, a, args.node_name(names[1]), b, args.node_name(names[2]))
    dims = broadcast(ctx, [out, bias])
    ctx.carry(bias)
    return Value(dims, constant=out.constant and bias.constant)


@rule("einsum")
def einsum(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Each letter is one axis; a letter that is missing from the output is contracted."""
    values, nodes = args["tensors"], args.nodes["tensors"]
    inputs, output = letters(args["equation"], [len(value.dims) for value in values])
    axis: dict[str, Dim] = {}
    for value, names in zip(values, inputs, strict=True):
        for letter, dim in zip(names, value.dims, strict=True):
            if D.size_of(axis.get(letter, ())) == 1:
                axis[letter] = dim
            elif D.size_of(dim) != 1:
                ctx.unify(axis[letter], dim)
    for position, (value, names) in enumerate(zip(values, inputs, strict=True)):
        if value.source is not None:
            ctx.carry_dims(value, [i for i, letter in enumerate(names) if letter in output])
        if len(set(names)) != len(names):
            ctx.pin(sum(value.dims, ()), "einsum takes a diagonal of it")
        del position
    for letter in dict.fromkeys("".join(inputs)):
        if letter not in output:
            _contract_letter(ctx, letter, axis[letter], values, inputs, nodes)
    activations = [names for value, names in zip(values, inputs, strict=True) if value.source is None]
    if len(activations) > 1:
        # A letter that only a parameter sums over (heads, in the output projection) is a batch dim of the activations.
        kept = {*output, *(c for value, names in zip(values, inputs, strict=True) if value.source for c in names)}
        for letter in dict.fromkeys("".join(activations)):
            shared = letter in kept and sum(letter in names for names in activations) > 1
            ctx.event("heads" if shared else "head dim", axis[letter])
    return Value(tuple(axis[letter] for letter in output), constant=all(value.constant for value in values))


def _contract_letter(
    ctx: Context, letter: str, dim: Dim, values: list[Value], inputs: list[str], nodes: list[fx.Node]
) -> None:
    holders = [i for i, names in enumerate(inputs) if letter in names]
    if len(holders) == 1 and (values[holders[0]].source is not None or inputs[holders[0]].count(letter) > 1):
        ctx.pin(dim, "einsum sums over it")
        return
    tensors = [i for i in holders if values[i].source is not None]
    if len(holders) == 2:
        a, b = holders
        where_a, where_b = inputs[a].index(letter), inputs[b].index(letter)
        ctx.contract(values[a], where_a, nodes[a].name, values[b], where_b, nodes[b].name)
    elif not tensors:
        ctx.event("contract", dim, *(nodes[i].name for i in holders))
    elif len(tensors) == 1:
        # The one parameter takes the shares for all other operands.
        other = next(i for i in holders if i not in tensors)
        ctx.consume(values[tensors[0]], inputs[tensors[0]].index(letter), nodes[other].name)
    else:
        ctx.pin(dim, "einsum contracts it with several parameters")


def letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Returns one letter per dim for every operand and for the output; an ellipsis becomes Greek letters."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    spare = [chr(code) for code in range(0x3B1, 0x3C9)]
    longest = 0
    expanded = []
    for names, rank in zip(inputs, ranks, strict=True):
        if "..." in names:
            count = rank - (len(names) - 3)
            longest = max(longest, count)
            names = names.replace("...", "".join(spare[-count:] if count else ""))
        expanded.append(names)
    if arrow:
        output = right.replace("...", "".join(spare[-longest:] if longest else ""))
    else:
        joined = "".join(expanded)
        output = "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    return expanded, output


@rule("scaled_dot_product_attention")
def attention(ctx: Context, node: fx.Node, args: Args) -> Value:
    """q `[..., H, L, D]`, k `[..., H, S, D]`, v `[..., H, S, V]` -> `[..., H, L, V]`.

    Without an explicit `scale` the op divides by sqrt(D), so widening D owes a factor. In grouped-query attention, H of
    q is H of k times the group size.
    """
    q, k, v = args["query"], args["key"], args["value"]
    lead = list(q.dims[:-2])
    if args.get("enable_gqa") and D.size_of(k.dims[-3]) != D.size_of(lead[-1]):
        outer, inner = D.reshape([lead[-1]], [D.size_of(k.dims[-3]), D.size_of(lead[-1]) // D.size_of(k.dims[-3])])
        ctx.unify(outer, k.dims[-3])
        ctx.unify(k.dims[-3], v.dims[-3])
        lead[-1] = outer + inner
        for position in range(len(lead) - 1):
            ctx.unify(lead[position], k.dims[position])
    else:
        lead = list(broadcast(ctx, [Value(tuple(lead)), Value(k.dims[:-2]), Value(v.dims[:-2])]))
    for dim in lead:
        ctx.event("heads", dim)
    ctx.unify(k.dims[-2], v.dims[-2])
    ctx.pin(D.channels(k.dims[-2]), "softmax runs over it")
    ctx.unify(q.dims[-1], k.dims[-1])
    ctx.decided.update(id(value) for value in (q, k, v))
    similar = length_roots(q, q.dims[-1]) == length_roots(k, k.dims[-1]) == 1
    if similar and args["scale"] is not None:
        ctx.event("normalise", q.dims[-1])  # cosine similarity: no factor is owed
    else:
        for value in (q, k):
            ctx.pin_lengths(value)
        ctx.event("contract", q.dims[-1], args.node_name("query"), args.node_name("key"), root=args["scale"] is None)
    ctx.pin_lengths(v)
    ctx.event("head dim", q.dims[-1])
    ctx.event("head dim", v.dims[-1])
    if args["attn_mask"] is not None:
        broadcast(ctx, [args["attn_mask"], Value((*lead, q.dims[-2], k.dims[-2]))])
        ctx.carry(args["attn_mask"])
    return Value((*lead, q.dims[-2], v.dims[-1]))


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Divides by the sum over a dim, which copies would change."""
    x = args["self"]
    ctx.pin(D.channels(x.dims[args["dim"]]), "softmax runs over it")
    ctx.carry(x)
    return Value(x.dims, constant=x.constant)


@rule("_grouped_mm", later=("transformers.grouped_mm_fallback",))
def grouped(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Rows `[S, I]`, sorted by expert, times weights `[E, I, O]` -> `[S, O]`."""
    (name_x, x), (name_w, weight), *rest = [
        (raw.name, ctx.resolve(raw)) for raw in args.nodes.values() if isinstance(raw, fx.Node)
    ]
    if len(x.dims) != 2 or len(weight.dims) != 3 or len(rest) != 1:
        raise ValueError("this form of the operation is not supported")
    ctx.pin(weight.dims[0], "experts are chosen by index")
    ctx.contract(x, 1, name_x, weight, 1, name_w)
    ctx.carry_dims(weight, [2])
    return Value((x.dims[0], weight.dims[2]))


_GATES = {"aten.lstm": 4, "aten.gru": 3, "aten.rnn_tanh": 1, "aten.rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(ctx: Context, node: fx.Node, args: Args) -> list[Value]:
    """x `[B, T, I]` or `[T, B, I]`, state `[layers * directions, B, H]` -> `[B, T, directions * H]` and last states.

    The parameters of each layer and direction are `[gates * H, I]`, `[gates * H, H]` and two biases `[gates * H]`. All
    units of a layer have the same gates, so copies stay equal; the recurrent weight divides its columns among them.
    """
    x, params, operand = args["input"], list(args["params"]), args.node_name("input")
    states = args["hx"] if isinstance(args["hx"], list) else [args["hx"]]
    layers, directions = args["num_layers"], 2 if args["bidirectional"] else 1
    each = 4 if args["has_biases"] else 2
    if len(params) != each * layers * directions:
        raise ValueError("projections are not supported")
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
    """States that dim 0 of every parameter is gates x hidden units."""
    for value in params:
        gates, units = D.reshape([value.dims[0]], [_GATES[ctx.op], D.size_of(hidden)])
        D.pin(gates, "gates of a recurrent layer")
        ctx.unify(units, hidden)
        ctx.carry_dims(value, [0])
