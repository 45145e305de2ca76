"""What a rule for an operation of your own is made of (docs/custom-ops.md).

A rule is a function of `(ctx, node, args)`: the analysis, the graph node, and the arguments by the names of the op's
schema (tensors as `Value`, one `Dim` per tensor dim). It says which dims of inputs and result are one axis and returns
the result's `Value`, or a list of them where the op has several results:

    @progc.rule(rms_norm)
    def rms_norm_rule(ctx, node, args):
        rules.normalised(ctx, args["x"])
        return rules.elementwise(ctx, args["x"], args["weight"])

What a rule does not speak of may not grow: an axis that goes in and does not come out is pinned, and so is
everything at an op whose rule fails or gives sizes that the op does not.
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
    """The result of an op that treats every unit alike and apart from the others.

    Operands broadcast as in PyTorch, so a gain or bias `[width]` goes along with `x [batch, tokens, width]`; None (an
    optional argument that is not given) is left out. For a parameter along another dim than the last see `same`.
    """
    given = [value for value in values if value is not None]
    dims = broadcast(ctx, given)
    ctx.carry(*given)
    return Value(dims, constant=all(value.constant for value in given))


def same(ctx: Context, a: Value, dim_a: int, b: Value | None, dim_b: int) -> None:
    """Dim `dim_a` of `a` and dim `dim_b` of `b` are one axis: same units, same order. Nothing if `b` is None.

    A parameter's dim goes along with the result: say `contracted` instead where the op sums over it.
    """
    if b is not None:
        ctx.unify(a.dims[dim_a], b.dims[dim_b])
        for value, dim in ((a, dim_a), (b, dim_b)):
            ctx.carry_dims(value, [dim % len(value.dims)])


def normalised(ctx: Context, x: Value, *dims: int) -> Value:
    """Statistics (means) are taken over `dims`, by default the last: exact where every unit has as many copies.

    Returns `x` as the op gives it out, so that a norm without parameters ends with it. Do not use this for sums, for
    softmax, or for a variance that divides by n - 1: copies change those; see `pinned`.
    """
    for dim in dims or (-1,):
        ctx.event("normalise", x.dims[dim])
    ctx.carry(x)
    return Value(x.dims, constant=x.constant)


def averaged(ctx: Context, x: Value, *dims: int, keepdim: bool = False) -> Value:
    """The mean over `dims`, by default the last; the result lacks them, or has size 1 there."""
    over = {dim % len(x.dims) for dim in dims or (-1,)}
    normalised(ctx, x, *over)
    kept = [() if i in over else dim for i, dim in enumerate(x.dims) if keepdim or i not in over]
    return Value(tuple(kept), constant=x.constant)


def contracted(ctx: Context, args: Args, a: str, dim_a: int, b: str, dim_b: int) -> None:
    """The op multiplies arguments `a` and `b` and sums over these dims: `x[..., i] * weight[o, i]`.

    A parameter among the two shares its weights among the copies; where neither is one (queries and keys), a factor is
    owed and progc looks for parameters that can take it. The other dims of the parameter make the result's units.
    """
    left, right = args[a], args[b]
    dims = dim_a % len(left.dims), dim_b % len(right.dims)
    ctx.contract(left, dims[0], args.node_name(a), right, dims[1], args.node_name(b))
    for value, summed in zip((left, right), dims, strict=True):
        ctx.carry_dims(value, [dim for dim in range(len(value.dims)) if dim != summed])


def parts(ctx: Context, x: Value, count: int, dim: int = -1) -> list[Value]:
    """`x` cut into `count` equal parts along `dim`, which grow by one map (the halves of a packed gated unit)."""
    dim %= len(x.dims)
    length, rest = divmod(D.size_of(x.dims[dim]), count)
    if rest:
        raise ValueError(f"{D.size_of(x.dims[dim])} units do not make {count} equal parts")
    pieces = D.split(x.dims[dim], [length * i for i in range(1, count)])
    ctx.carry(x)
    for piece in pieces[1:]:
        ctx.unify(pieces[0], piece)
    return [replaced(x, {dim: piece}) for piece in pieces]


def factors(x: Value, dim: int, sizes: Sequence[int]) -> list[Dim]:
    """`dim` of `x` as a product of dims of these sizes, outermost first: `[heads, -1]` of a packed width.

    One size may be -1, the rest of the dim.
    """
    total, known = D.size_of(x.dims[dim]), math.prod(size for size in sizes if size != -1)
    if list(sizes).count(-1) > 1 or total % known or (-1 not in sizes and known != total):
        raise ValueError(f"{total} units are no product of {list(sizes)}")
    return D.reshape([x.dims[dim]], [total // known if size == -1 else size for size in sizes])


def joined(*dims: Dim) -> Dim:
    """The dim that is the product of `dims`, outermost first: the opposite of `factors`."""
    return tuple(atom for dim in dims for atom in dim)


def replaced(x: Value, dims: dict[int, Dim]) -> Value:
    """A result like `x` with other dims in some places: `replaced(x, {-1: weight.dims[0]})`."""
    own = list(x.dims)
    for position, dim in dims.items():
        own[position] = dim
    return Value(tuple(own), constant=x.constant)


def size(ctx: Context, args: Args, name: str, *dims: Dim) -> None:
    """The int argument `name` of the op is the size of `dims` (the sum of their sizes), and follows when they grow.

    An argument that is not written in the call has its default value and cannot follow, so the dims are pinned.
    """
    if name in args.paths:
        ctx.literal(args.paths[name], *dims)
    else:
        for dim in dims:
            ctx.pin(D.channels(dim), f"{ctx.op} has the default {name}")


def meaning(ctx: Context, dim: Dim, what: Literal["heads", "head dim"]) -> None:
    """What an axis is called in tables and in targets (`--to heads=8`); says nothing about growth."""
    if what not in ("heads", "head dim"):
        raise ValueError(f"a dim means heads or head dim, not {what!r}")
    ctx.event(what, dim)


def pinned(ctx: Context, dim: Dim, reason: str) -> None:
    """`dim` may not grow, because of `reason`: it is counted, sorted, summed, or mixed in a fixed pattern."""
    ctx.pin(D.channels(dim), reason)
