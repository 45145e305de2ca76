"""Pooling and resizing: extents change, channels go along."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.ir.program import TensorMeta

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
