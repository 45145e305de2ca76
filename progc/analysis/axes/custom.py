"""Building blocks for the rule of a custom operation (docs/custom-ops.md).

A rule is a function of `(ctx, node, args)`: the analysis, the graph node, and the arguments by the names in the op's
schema (tensors as `Value`, with one `Dim` per tensor dim). It states which dims of the inputs and of the result are one
axis, and returns the `Value` of the result, or a list of values if the op has several results:

    @progc.rule(rms_norm)
    def rms_norm_rule(ctx, node, args):
        rules.normalised(ctx, args["x"])
        return rules.elementwise(ctx, args["x"], args["weight"])

An axis that a rule does not mention may not grow. An axis that enters the op and does not leave it is pinned. If a
rule raises an exception or returns sizes that differ from the op's, every axis at the op is pinned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.pointwise import broadcast

__all__ = [
    "Args", "Context", "Dim", "Value", "averaged", "contracted", "elementwise", "factors", "joined", "meaning",
    "normalised", "parts", "pinned", "replaced", "rule", "same", "size",
]  # fmt: skip


def elementwise(ctx: Context, *values: Value | None) -> Value:
    """Returns the result of an op that computes every unit in the same way and independently of the others.

    Operands broadcast as in PyTorch: a gain or bias `[width]` grows with `x [batch, tokens, width]`. None stands for an
    optional argument that is not given. For a parameter along a dim other than the last, see `same`.
    """
    given = [value for value in values if value is not None]
    dims = broadcast(ctx, given)
    ctx.carry(*given)
    return Value(dims, constant=all(value.constant for value in given))


def same(ctx: Context, a: Value, dim_a: int, b: Value | None, dim_b: int) -> None:
    """States that dim `dim_a` of `a` and dim `dim_b` of `b` are one axis: same units, same order.

    Does nothing if `b` is None. The dim of a parameter must correspond to units of the result; use `contracted` if the
    op sums over it.
    """
    if b is not None:
        ctx.unify(a.dims[dim_a], b.dims[dim_b])
        for value, dim in ((a, dim_a), (b, dim_b)):
            ctx.carry_dims(value, [dim % len(value.dims)])


def normalised(ctx: Context, x: Value, *dims: int) -> Value:
    """States that means are taken over `dims`, by default the last dim, and returns the normalised `x`.

    Growth stays exact if every unit gets the same number of copies. Do not use this for sums, for softmax, or for a
    variance that divides by n - 1: copies change those; see `pinned`.
    """
    for dim in dims or (-1,):
        ctx.event("normalise", x.dims[dim])
    ctx.carry(x)
    return Value(x.dims, constant=x.constant)


def averaged(ctx: Context, x: Value, *dims: int, keepdim: bool = False) -> Value:
    """Returns the mean over `dims`, by default the last dim; with `keepdim` they stay with size 1."""
    over = {dim % len(x.dims) for dim in dims or (-1,)}
    normalised(ctx, x, *over)
    kept = [() if i in over else dim for i, dim in enumerate(x.dims) if keepdim or i not in over]
    return Value(tuple(kept), constant=x.constant)


def contracted(ctx: Context, args: Args, a: str, dim_a: int, b: str, dim_b: int) -> None:
    """States that the op multiplies arguments `a` and `b` and sums over these dims: `x[..., i] * weight[o, i]`.

    If one of the two is a parameter, its weights are divided among the copies. If neither is (queries and keys), a
    factor is owed, and progc looks for parameters that can take it. The other dims of a parameter must correspond to
    units of the result.
    """
    left, right = args[a], args[b]
    dims = dim_a % len(left.dims), dim_b % len(right.dims)
    ctx.contract(left, dims[0], args.node_name(a), right, dims[1], args.node_name(b))
    for value, summed in zip((left, right), dims, strict=True):
        ctx.carry_dims(value, [dim for dim in range(len(value.dims)) if dim != summed])


def parts(ctx: Context, x: Value, count: int, dim: int = -1) -> list[Value]:
    """Returns `x` cut into `count` equal parts along `dim`, which grow in the same way (the halves of a gated unit).

    Raises:
        ValueError: the dim cannot be cut into equal parts.
    """
    dim %= len(x.dims)
    length, rest = divmod(D.size_of(x.dims[dim]), count)
    if rest:
        raise ValueError(f"cannot cut {D.size_of(x.dims[dim])} units into {count} equal parts")
    pieces = D.split(x.dims[dim], [length * i for i in range(1, count)])
    ctx.carry(x)
    for piece in pieces[1:]:
        ctx.unify(pieces[0], piece)
    return [replaced(x, {dim: piece}) for piece in pieces]


def factors(x: Value, dim: int, sizes: Sequence[int]) -> list[Dim]:
    """Returns `dim` of `x` as a product of dims of these sizes, outermost first: `[heads, -1]` of a packed width.

    One size may be -1; it is inferred from the others.

    Raises:
        ValueError: the sizes do not multiply to the size of the dim.
    """
    total, known = D.size_of(x.dims[dim]), math.prod(size for size in sizes if size != -1)
    if list(sizes).count(-1) > 1 or total % known or (-1 not in sizes and known != total):
        raise ValueError(f"{total} units are not a product of the sizes {list(sizes)}")
    return D.reshape([x.dims[dim]], [total // known if size == -1 else size for size in sizes])


def joined(*dims: Dim) -> Dim:
    """Returns the product of `dims`, outermost first: the inverse of `factors`."""
    return tuple(atom for dim in dims for atom in dim)


def replaced(x: Value, dims: dict[int, Dim]) -> Value:
    """Returns a value like `x` with some dims replaced: `replaced(x, {-1: weight.dims[0]})`."""
    own = list(x.dims)
    for position, dim in dims.items():
        own[position] = dim
    return Value(tuple(own), constant=x.constant)


def size(ctx: Context, args: Args, name: str, *dims: Dim) -> None:
    """States that the int argument `name` is the total size of `dims`, so that it changes when they grow.

    If the call does not pass the argument, its default value cannot change, and the dims are pinned.
    """
    if name in args.paths:
        ctx.literal(args.paths[name], *dims)
    else:
        for dim in dims:
            ctx.pin(D.channels(dim), f"{ctx.op} uses the default {name}")


def meaning(ctx: Context, dim: Dim, what: Literal["heads", "head dim"]) -> None:
    """States what an axis is called in tables and in targets (`--to heads=8`); does not affect growth.

    Raises:
        ValueError: `what` is not `heads` or `head dim`.
    """
    if what not in ("heads", "head dim"):
        raise ValueError(f"meaning(): expected `heads` or `head dim`, got {what!r}")
    ctx.event(what, dim)


def pinned(ctx: Context, dim: Dim, reason: str) -> None:
    """States that `dim` may not grow, for the given reason: it is counted, sorted, summed, or mixed in a fixed way."""
    ctx.pin(D.channels(dim), reason)
