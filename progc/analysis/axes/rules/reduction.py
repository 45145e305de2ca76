"""Rules of reductions and normalisations: which dims they reduce or take statistics over."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.pointwise import pointwise
from progc.ir.program import TensorMeta


def _reduced(ctx: Context, node: fx.Node, args: Args) -> tuple[list[int], Any]:
    x = next(iter(args.tensors()))
    raw = args.get("dim")
    if raw is None or raw == []:
        over = list(range(len(x.dims)))
    else:
        over = [int(d) % len(x.dims) for d in (raw if isinstance(raw, (list, tuple)) else [raw])]
    keep = bool(args.get("keepdim", False))
    dims: list[D.Dim] = []
    for position, dim in enumerate(x.dims):
        if position not in over:
            dims.append(dim)
        elif keep:
            dims.append(())
    value = Value(tuple(dims), constant=x.constant)
    meta = node.meta["tensor"]
    return over, value if isinstance(meta, TensorMeta) else [Value(tuple(dims), constant=x.constant) for _ in meta]


def _channels(x: Value, over: list[int]) -> list[D.Dim]:
    return [x.dims[d] for d in over if D.channels(x.dims[d])]


@rule("mean", "nanmean")
def mean(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Exact if every unit has the same number of copies."""
    over, out = _reduced(ctx, node, args)
    for dim in _channels(args["self"], over):
        ctx.event("normalise", dim)
    ctx.carry(args["self"])
    return out


@rule("amax", "amin", "max", "min", "any", "all", "argmax", "argmin")
def extremum(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Copies do not change a maximum, but they change the index of it."""
    if len(list(args.tensors())) == 2:
        return pointwise(ctx, node, args)
    over, out = _reduced(ctx, node, args)
    for dim in _channels(args["self"], over):
        if ctx.op in ("aten.amax", "aten.amin", "aten.any", "aten.all"):
            ctx.event("copies", dim)
        else:
            ctx.pin(dim, f"{ctx.op} returns an index into it")
    ctx.carry(args["self"])
    return out


@rule("sum")
def added(ctx: Context, node: fx.Node, args: Args) -> Any:
    """A contraction with ones: copies add up, so a factor is owed (docs/growth.md, section 0.1)."""
    x = args["self"]
    over, out = _reduced(ctx, node, args)
    found = _channels(x, over)
    if len(found) == 1 and x.source is None and not x.constant:
        ctx.event("contract", found[0], args.node_name("self"))
    else:
        for dim in found:
            ctx.pin(dim, f"{ctx.op} reduces over it")
    ctx.carry(x)
    return out


@rule("prod", "nansum", "logsumexp", "linalg_vector_norm", "norm")
def total(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Copies change these; a length changes by a common factor (progc/analysis/axes/lengths.py)."""
    over, out = _reduced(ctx, node, args)
    found = _channels(args["self"], over)
    if _is_length(ctx, args) and isinstance(out, Value):
        for dim in found:
            ctx.event("normalise", dim)
        out = dataclasses.replace(out, lengths=tuple((dim, 1) for dim in found))
    else:
        for dim in found:
            ctx.pin(dim, f"{ctx.op} reduces over it")
    ctx.carry(args["self"])
    return out


def _is_length(ctx: Context, args: Args) -> bool:
    """True for the Euclidean norm."""
    order = args.get("ord", args.get("p"))
    return ctx.op in ("aten.linalg_vector_norm", "aten.norm") and order in (None, 2)


@rule("var", "std", "var_mean", "std_mean")
def variance(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Exact for uniform copies: the correction grows with the number of units (n - 1 becomes rn - r)."""
    over, out = _reduced(ctx, node, args)
    correction = args.get("correction")
    for dim in _channels(args["self"], over):
        if not isinstance(correction, (int, float)):
            ctx.pin(dim, f"{ctx.op} divides by n - {correction}")
            continue
        ctx.event("normalise", dim)
        if correction:
            ctx.literal(args.paths["correction"], dim, value=correction)
    ctx.carry(args["self"])
    return out


@rule("cumsum", "cumprod", "diff", "cummax", "sort", "argsort", "topk")
def ordered(ctx: Context, node: fx.Node, args: Args) -> Any:
    """The result depends on the order of units along the dim."""
    x = args["self"]
    dim = int(args.get("dim", -1)) % max(len(x.dims), 1)
    if D.channels(x.dims[dim]):
        ctx.pin(x.dims[dim], f"{ctx.op} depends on the order of its units")

    def of(meta: TensorMeta) -> Value:
        dims = list(x.dims)
        if meta.shape[dim] != D.size_of(dims[dim]):
            dims[dim] = D.new(meta.shape[dim], extent=True)
        return Value(tuple(dims), constant=x.constant)

    meta = node.meta["tensor"]
    return of(meta) if isinstance(meta, TensorMeta) else [of(item) for item in meta]


def _affine(ctx: Context, args: Args, dims: tuple[D.Dim, ...]) -> None:
    for name in ("weight", "bias"):
        value = args.get(name)
        if value is not None:
            for a, b in zip(dims, value.dims, strict=True):
                ctx.unify(a, b)
            ctx.carry(value)


@rule("layer_norm", "rms_norm")
def layer_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Statistics over the last dims: exact if every unit has the same number of copies."""
    x, count = args["input"], len(args["normalized_shape"])
    last = x.dims[-count:]
    for dim in last:
        ctx.event("normalise", dim)
    ctx.sizes(args, "normalized_shape", last)
    _affine(ctx, args, last)
    return Value(x.dims)


@rule("batch_norm", "instance_norm")
def batch_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Each channel (dim 1) is independent of the others and has its own running statistics."""
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
                ctx.pin(D.channels(dim), f"{ctx.op} divides by n - 1 over it (running variance)")
    return Value(x.dims)


@rule("_weight_norm")
def weight_norm(ctx: Context, node: fx.Node, args: Args) -> Value:
    """`g * v / |v|`, with the norm over all dims but one: that one grows freely, the others by integer factors."""
    v, gain, kept = args["v"], args["g"], args["dim"]
    if kept < 0:
        raise ValueError("one norm over the whole weight is not supported")
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
        # A group may span several segments: keep the segments whole and require one common factor.
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
