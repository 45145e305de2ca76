"""Look-ups: embedding tables, relative-position tables, gathers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.movement import moved


@rule("embedding")
def embedding(ctx: Context, node: fx.Node, args: Args) -> Value:
    """weight `[V, E]`, indices `[...]` -> `[..., E]`: V is looked up and never grows."""
    weight, indices = args["weight"], args["indices"]
    ctx.pin(weight.dims[0], "rows are looked up by index")
    ctx.carry_dims(weight, [1])
    return Value((*indices.dims, weight.dims[1]))


@rule("index", "_unsafe_index")
def index(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Advanced indexing: indexed dims are looked up, the others go along."""
    x, indices = args["self"], args["indices"]
    indices = list(indices) + [None] * (len(x.dims) - len(indices))
    used = [i for i, item in enumerate(indices) if isinstance(item, Value)]
    shape = node.meta["tensor"].shape
    for position in used:
        ctx.pin(x.dims[position], "looked up by index")
        ctx.pin(D.channels(sum(indices[position].dims, ())), "used as an index")
    if any(_is_mask(args.nodes["indices"][i]) for i in used):
        ctx.pin(sum(x.dims, ()), "selected by a mask")
        ctx.carry(x)
        return Value(tuple(D.new(size, extent=True) for size in shape))
    new_rank = max(len(indices[i].dims) for i in used)
    adjacent = used == list(range(used[0], used[-1] + 1))
    kept = [x.dims[i] for i in range(len(x.dims)) if i not in used]
    place = used[0] if adjacent else 0
    fresh = [D.new(size, extent=True) for size in shape[place : place + new_rank]]
    rows: list[int | None] = [i for i in range(len(x.dims)) if i not in used]
    order = [*rows[:place], *[None] * new_rank, *rows[place:]]
    # Rows of a parameter are a parameter still (experts chosen per token): the other dims are its own.
    return moved(Value((), x.source), [*kept[:place], *fresh, *kept[place:]], order)


def _is_mask(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.meta["tensor"].dtype in (torch.bool, torch.uint8)


@rule("index_select", "gather", "take_along_dim", "index_copy", "index_add", "scatter", "scatter_add")
def by_dim(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Look-ups along one dim; with a full index tensor every channel dim is fixed."""
    x, shape = args["self"], node.meta["tensor"].shape
    dim = int(args["dim"]) % len(x.dims)
    if ctx.op == "aten.index_select":
        ctx.pin(x.dims[dim], "looked up by index")
        dims = list(x.dims)
        dims[dim] = D.new(shape[dim], extent=True)
        order = [None if i == dim else i for i in range(len(dims))]
        return moved(x, dims, order)
    for value in args.tensors():
        ctx.pin(D.channels(sum(value.dims, ())), "looked up by index")
    return moved(Value(()), [D.new(size, extent=True) for size in shape], [])


@rule("one_hot")
def one_hot(ctx: Context, node: fx.Node, args: Args) -> Value:
    """A class axis."""
    classes = D.new(node.meta["tensor"].shape[-1], extent=True)
    return Value((*args["self"].dims, classes))
