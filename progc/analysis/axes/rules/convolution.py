"""Rules of convolutions (any rank, grouped, depthwise, transposed), pooling and resizing."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.ir.program import TensorMeta


@rule("conv1d", "conv2d", "conv3d")
def conv(ctx: Context, node: fx.Node, args: Args) -> Value:
    """x `[N, I, *]`, weight `[O, I/groups, *k]`; I = groups x i, O = groups x o."""
    return _conv(ctx, node, args, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(ctx: Context, node: fx.Node, args: Args) -> Value:
    """x `[N, I, *]`, weight `[I, O/groups, *k]`."""
    return _conv(ctx, node, args, transposed=True)


@rule("convolution")
def convolution(ctx: Context, node: fx.Node, args: Args) -> Value:
    """The general form."""
    return _conv(ctx, node, args, transposed=bool(args["transposed"]))


def _conv(ctx: Context, node: fx.Node, args: Args, transposed: bool) -> Value:
    x, weight, bias, groups = args["input"], args["weight"], args["bias"], args["groups"]
    spatial = len(weight.dims) - 2
    shape = node.meta["tensor"].shape
    channels = x.dims[-spatial - 1]
    for dim in weight.dims[2:]:
        ctx.pin(dim, D.KERNEL)
    name = args.node_name("input")
    if transposed:
        out = _transposed(ctx, args, x, weight, channels, groups, name)
    elif groups == 1:
        ctx.contract(x, len(x.dims) - spatial - 1, name, weight, 1, args.node_name("weight"))
        ctx.carry_dims(weight, [0])
        out = weight.dims[0]
    else:
        out = _grouped(ctx, args, channels, weight, groups, name)
    if bias is not None:
        ctx.unify(out, bias.dims[0])
        ctx.carry(bias)
    lead = x.dims[: -spatial - 1]
    if D.size_of(sum(weight.dims[2:], ())) == 1 and shape[-spatial:] == x.shape[-spatial:]:
        return Value((*lead, out, *x.dims[-spatial:]))  # a kernel of one point: positions are independent
    for dim in x.dims[-spatial:]:
        ctx.pin(D.channels(dim), f"{ctx.op} slides along it")
    return Value((*lead, out, *(D.new(size, extent=True) for size in shape[-spatial:])))


def _grouped(ctx: Context, args: Args, channels: D.Dim, weight: Value, groups: int, name: str) -> D.Dim:
    size = D.size_of(channels)
    if size == groups:
        group, inside = channels, D.new(1)
    else:
        group, inside = D.reshape([channels], [groups, size // groups])
        ctx.event("conv groups", group)
    out_size = D.size_of(weight.dims[0])
    out_group, out_inside = D.reshape([weight.dims[0]], [groups, out_size // groups])
    if size == groups:
        ctx.event("channel multiplier", out_inside)
    ctx.unify(group, out_group)
    ctx.unify(inside, weight.dims[1])
    ctx.literal(args.paths["groups"], group)
    if not ctx.consume(weight, 1, name):
        ctx.event("contract", inside, name, args.node_name("weight"))
    ctx.carry_dims(weight, [0])
    return out_group + out_inside


def _transposed(ctx: Context, args: Args, x: Value, weight: Value, channels: D.Dim, groups: int, name: str) -> D.Dim:
    ctx.unify(channels, weight.dims[0])
    if groups == 1:
        ctx.contract(x, -len(weight.dims) + 1, name, weight, 0, args.node_name("weight"))
        ctx.carry_dims(weight, [1])
        return weight.dims[1]
    group, inside = D.reshape([channels], [groups, D.size_of(channels) // groups])
    if D.size_of(inside) == 1:
        ctx.event("channel multiplier", weight.dims[1])
    else:
        ctx.event("conv groups", group)
    ctx.literal(args.paths["groups"], group)
    # Rows of the weight are groups, which it carries, times the channels inside a group, which it sums over.
    rest = weight.dims[1:]
    ctx.carry_dims(Value((group, *rest), weight.source), [0, 1])
    if not ctx.consume(Value((inside, *rest), weight.source), 0, name):
        ctx.event("contract", inside, name, args.node_name("weight"))
    return group + weight.dims[1]


ONE = """avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d""".split()

TWO = """avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d
upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
grid_sampler""".split()

THREE = "avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d upsample_trilinear3d".split()


def _pooled(ctx: Context, x: Value, meta: Any, rank: int) -> Any:
    if not isinstance(meta, TensorMeta):
        return [_pooled(ctx, x, item, rank) for item in meta]
    for dim in x.dims[-rank:]:
        ctx.pin(D.channels(dim), f"{ctx.op} runs along it")
    extents = tuple(D.new(size, extent=True) for size in meta.shape[-rank:])
    return Value((*x.dims[:-rank], *extents), constant=x.constant)


@rule(*ONE)
def pool_1d(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Last dim."""
    return _pooled(ctx, next(iter(args.tensors())), node.meta["tensor"], 1)


@rule(*TWO)
def pool_2d(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Last two dims."""
    return _pooled(ctx, next(iter(args.tensors())), node.meta["tensor"], 2)


@rule(*THREE)
def pool_3d(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Last three dims."""
    return _pooled(ctx, next(iter(args.tensors())), node.meta["tensor"], 3)
