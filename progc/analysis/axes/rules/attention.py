"""Fused attention."""

from __future__ import annotations

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value, length_roots
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.pointwise import broadcast


@rule("scaled_dot_product_attention")
def attention(ctx: Context, node: fx.Node, args: Args) -> Value:
    """q `[..., H, L, D]`, k `[..., H, S, D]`, v `[..., H, S, V]` -> `[..., H, L, V]`.

    Without an explicit `scale` the op divides by sqrt(D) itself, so widening D owes a factor. With grouped
    queries, H of q is (H of k) x group size.
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
        ctx.event("normalise", q.dims[-1])  # cosines: nothing is owed
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
    """Normalises over a dim by its sum: copies would change the sum."""
    x = args["self"]
    ctx.pin(D.channels(x.dims[args["dim"]]), "softmax runs over it")
    ctx.carry(x)
    return Value(x.dims, constant=x.constant)
