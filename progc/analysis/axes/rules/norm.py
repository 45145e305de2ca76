"""Normalisations: what they take statistics over, and which tensors go along."""

from __future__ import annotations

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule


def _affine(ctx: Context, args: Args, dims: tuple[D.Dim, ...]) -> None:
    for name in ("weight", "bias"):
        value = args.get(name)
        if value is not None:
            for a, b in zip(dims, value.dims, strict=True):
                ctx.unify(a, b)
            ctx.carry(value)


@rule("layer_norm", "rms_norm")
def layer_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Statistics over the last dims: exact for copies if every unit has the same number of them."""
    x, count = args["input"], len(args["normalized_shape"])
    last = x.dims[-count:]
    for dim in last:
        ctx.event("normalise", dim)
    ctx.sizes(args, "normalized_shape", last)
    _affine(ctx, args, last)
    return Value(x.dims)


@rule("batch_norm", "instance_norm")
def batch_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Per channel (dim 1): every unit stands alone, running statistics go along."""
    x = args["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = args.get(name)
        if value is not None:
            ctx.unify(x.dims[1], value.dims[0])
            ctx.carry(value)
    if ctx.op == "aten.instance_norm" or args["training"]:
        for dim in x.dims[2:] if ctx.op == "aten.instance_norm" else (x.dims[0], *x.dims[2:]):
            if args["running_var"] is None:
                ctx.event("normalise", dim)
            else:  # the running variance is the unbiased estimate
                ctx.pin(D.channels(dim), f"{ctx.op} divides by n - 1 over it")
    return Value(x.dims)


@rule("_weight_norm")
def weight_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """`g * v / length of v`, the length over all dims but one: that one grows freely, the others by whole factors."""
    v, gain, kept = args["v"], args["g"], args["dim"]
    if kept < 0:
        raise ValueError("one length for the whole weight")
    ctx.unify(v.dims[kept], gain.dims[kept])
    ctx.carry(v, gain)
    others = [dim for position, dim in enumerate(v.dims) if position != kept]
    for dim in others:
        ctx.event("normalise", dim)
    return Value(v.dims, constant=True, lengths=tuple((dim, -1) for dim in others))


@rule("group_norm")
def group_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Statistics within each of `num_groups` contiguous groups of channels (dim 1)."""
    x, groups = args["input"], args["num_groups"]
    channels = D.size_of(x.dims[1])
    leaves = D.resolve(x.dims[1])
    seams = len(leaves) == 1 and leaves[0].segments is not None
    if groups == 1:
        ctx.event("normalise", x.dims[1])
    elif seams:
        # Groups may reach across a seam: leave the segments whole and ask for one common factor.
        ctx.event("groups", x.dims[1])
    else:
        outer, inner = D.reshape([x.dims[1]], [groups, channels // groups])
        ctx.event("norm groups", outer)
        ctx.event("normalise", inner)
        ctx.literal(args.paths["num_groups"], outer)
    for dim in x.dims[2:]:
        ctx.event("normalise", dim)
    _affine(ctx, args, (x.dims[1],))
    return Value(x.dims)
