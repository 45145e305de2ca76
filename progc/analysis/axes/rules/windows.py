"""Sliding windows taken apart and put together again: the rows of a column are channels x window positions."""

from __future__ import annotations

import math

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule


@rule("im2col")
def im2col(ctx: Context, node: fx.Node, args: Args) -> Value:
    """x `[..., C, H, W]` -> `[..., C * window, positions]`, channels outermost."""
    x = args["self"]
    for dim in x.dims[-2:]:
        ctx.pin(D.channels(dim), f"{ctx.op} runs along it")
    window = D.new(math.prod(args["kernel_size"]), extent=True)
    positions = D.new(node.meta["tensor"].shape[-1], extent=True)
    return Value((*x.dims[:-3], (*x.dims[-3], *window), positions), constant=x.constant)


@rule("col2im")
def col2im(ctx: Context, node: fx.Node, args: Args) -> Value:
    """x `[..., C * window, positions]` -> `[..., C, H, W]`: overlapping windows add up, channel by channel."""
    x, shape = args["self"], node.meta["tensor"].shape
    ctx.pin(D.channels(x.dims[-1]), f"{ctx.op} runs along it")
    channels, window = D.reshape([x.dims[-2]], [shape[-3], math.prod(args["kernel_size"])])
    ctx.pin(D.channels(window), f"{ctx.op} runs along it")
    extents = tuple(D.new(size, extent=True) for size in shape[-2:])
    return Value((*x.dims[:-2], channels, *extents), constant=x.constant)
