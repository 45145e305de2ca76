"""Tensors made in the graph: their sizes are baked literals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule


@rule(*"zeros ones empty full rand randn new_zeros new_ones new_empty new_full".split())
def filled(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Every unit alike: the sizes follow the axes that the tensor meets."""
    raw: Sequence[object] = args.nodes["size"]
    shape = node.meta["tensor"].shape
    dims = tuple(D.new(size, extent=not isinstance(raw[i], int)) for i, size in enumerate(shape))
    ctx.sizes(args, "size", dims)
    return Value(dims, constant=True)


@rule(*"zeros_like ones_like empty_like full_like rand_like randn_like".split())
def like(ctx: Context, node: fx.Node, args: Args) -> Value:
    """As large as another tensor."""
    return Value(args["self"].dims, constant=True)


@rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "tensor")
def counted(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Content depends on the place: never grows."""
    dims = tuple(D.new(size) for size in node.meta["tensor"].shape)
    for dim in dims:
        D.pin(dim, f"counted by {ctx.op}")
    return Value(dims, constant=True)
