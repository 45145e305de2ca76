"""Ops that contract: linear, matmul, einsum and their relatives."""

from __future__ import annotations

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import Value
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
    """Every unit of one vector times every unit of the other."""
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
    """One letter is one axis; a letter that is missing in the output is contracted."""
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
            ctx.pin(sum(value.dims, ()), "diagonal in einsum")
        del position
    for letter in dict.fromkeys("".join(inputs)):
        if letter not in output:
            _contract_letter(ctx, letter, axis[letter], values, inputs, nodes)
    activations = [names for value, names in zip(values, inputs, strict=True) if value.source is None]
    if len(activations) > 1:
        # A letter that only a parameter sums up (heads, in the output projection) is still a batch of the others.
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
        ctx.pin(dim, "summed by einsum")
        return
    tensors = [i for i in holders if values[i].source is not None]
    if len(holders) == 2:
        a, b = holders
        where_a, where_b = inputs[a].index(letter), inputs[b].index(letter)
        ctx.contract(values[a], where_a, nodes[a].name, values[b], where_b, nodes[b].name)
    elif not tensors:
        ctx.event("contract", dim, *(nodes[i].name for i in holders))
    elif len(tensors) == 1:
        # The other operands go along unit by unit; the one parameter takes the shares for all of them.
        other = next(i for i in holders if i not in tensors)
        ctx.consume(values[tensors[0]], inputs[tensors[0]].index(letter), nodes[other].name)
    else:
        ctx.pin(dim, "contracted by an einsum of several parameters")


def letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Explicit letters for every operand and the output; an ellipsis becomes capital letters of its own."""
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
