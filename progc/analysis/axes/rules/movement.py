"""Rules of ops that move values without computing with them.

In the order of the file: views, permutations and repetition (a moved parameter stays a parameter); lookups in embedding
tables, relative-position tables and gathers; tensors created in the graph, whose sizes are literals; and the sliding
windows of im2col and col2im.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import MovedTensor, Value
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.pointwise import broadcast
from progc.ir.graphs import reshape_groups
from progc.ir.program import TensorMeta


def moved(x: Value, dims: Sequence[Dim], order: Sequence[int | None]) -> Value:
    """Returns `x` with its dims rearranged: dim i of the result is dim `order[i]` of `x`, or new if that is None."""
    source = None
    if x.source is not None:
        source = MovedTensor(x.source.name, tuple(frozenset() if i is None else x.source.dims[i] for i in order))
    return Value(tuple(dims), source, x.constant)


def same(x: Value) -> Value:
    """Returns `x` without its lengths, unchanged otherwise."""
    return Value(x.dims, x.source, x.constant)


@rule(
    *"""contiguous clone detach alias lift_fresh_copy lift_fresh to _to_copy type_as dropout native_dropout positive
    _conj resolve_conj data""".split()
)
def identity(ctx: Context, node: fx.Node, args: Args) -> Value | list[Value]:
    """Copies, casts and dropout."""
    x = next(iter(args.tensors()))
    return same(x) if isinstance(node.meta["tensor"], TensorMeta) else [same(x), Value(x.dims)]


@rule("view", "reshape", "_unsafe_view", "view_copy")
def view(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Factors are assigned from left to right; a cut refines the axis everywhere."""
    x = args["self"]
    name = "size" if "size" in args.nodes else "shape"
    out = _reshaped(x, node.meta["tensor"].shape)
    ctx.sizes(args, name, out.dims)
    return out


def _reshaped(x: Value, shape: Sequence[int]) -> Value:
    dims = D.reshape(x.dims, shape)
    source = None
    if x.source is not None:
        # Result dims of one reshape group hold all tensor dims of that group.
        held: list[frozenset[int]] = []
        for old, wanted in reshape_groups([D.size_of(dim) for dim in x.dims], list(shape)):
            union = frozenset().union(*(x.source.dims[i] for i in old)) if len(old) else frozenset()
            held.extend(union for _ in wanted)
        source = MovedTensor(x.source.name, tuple(held))
    return Value(tuple(dims), source, x.constant)


@rule("view_as", "reshape_as")
def view_as(ctx: Context, node: fx.Node, args: Args) -> Value:
    """The shape of another tensor."""
    out = _reshaped(args["self"], node.meta["tensor"].shape)
    for a, b in zip(out.dims, args["other"].dims, strict=True):
        ctx.unify(a, b)
    return out


@rule("flatten", "squeeze", "unsqueeze", "squeeze_copy", "unsqueeze_copy")
def shape_only(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Reshapes without sizes among their arguments."""
    return _reshaped(args["self"], node.meta["tensor"].shape)


@rule("unflatten")
def unflatten(ctx: Context, node: fx.Node, args: Args) -> Value:
    """One dim becomes several."""
    x = args["self"]
    out = _reshaped(x, node.meta["tensor"].shape)
    start = args["dim"] % len(x.dims)
    ctx.sizes(args, "sizes", out.dims[start : start + len(args["sizes"])])
    return out


@rule("permute", "permute_copy")
def permute(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Reorders the dims."""
    x = args["self"]
    order = [int(i) % len(x.dims) for i in args["dims"]]
    return moved(x, [x.dims[i] for i in order], order)


@rule("transpose", "swapaxes", "t", "numpy_T", "mT", "transpose_copy", "adjoint")
def transpose(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Swaps two dims."""
    x = args["self"]
    order = list(range(len(x.dims)))
    if "dim0" in args.nodes:
        a, b = args["dim0"] % len(order), args["dim1"] % len(order)
    elif "axis0" in args.nodes:
        a, b = args["axis0"] % len(order), args["axis1"] % len(order)
    elif ctx.op == "aten.numpy_T":
        order.reverse()
        a = b = 0
    else:
        a, b = (len(order) - 2, len(order) - 1) if len(order) > 1 else (0, 0)
    order[a], order[b] = order[b], order[a]
    return moved(x, [x.dims[i] for i in order], order)


@rule("movedim", "moveaxis")
def movedim(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Moves some dims; the others keep their order."""
    x = args["self"]
    as_list = lambda v: [v] if isinstance(v, int) else list(v)  # noqa: E731
    rank = len(x.dims)
    source = [i % rank for i in as_list(args["source"])]
    target = [i % rank for i in as_list(args["destination"])]
    order: list[int | None] = [None] * rank
    for s, t in zip(source, target, strict=True):
        order[t] = s
    rest = iter(i for i in range(rank) if i not in source)
    final = [next(rest) if i is None else i for i in order]
    return moved(x, [x.dims[i] for i in final], final)


@rule("expand", "expand_copy", "broadcast_to")
def expand(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Repeats dims of size 1; a repeated dim is a new axis (the group size of grouped-query attention)."""
    x, raw = args["self"], args.nodes["size"]
    shape = node.meta["tensor"].shape
    offset = len(shape) - len(x.dims)
    out: list[Dim] = []
    order: list[int | None] = []
    for position, size in enumerate(shape):
        old = x.dims[position - offset] if position >= offset else ()
        kept = position >= offset and D.size_of(old) == size
        order.append(position - offset if kept else None)
        out.append(old if kept else D.new(size, extent=not isinstance(raw[position], int)))
    ctx.sizes(args, "size", out)
    return moved(x, out, order)


@rule("broadcast_tensors")
def broadcast_tensors(ctx: Context, node: fx.Node, args: Args) -> list[Value]:
    """Expands all operands to their common shape."""
    values = args["tensors"]
    dims = broadcast(ctx, values)
    ctx.carry(*values)
    return [Value(dims, constant=value.constant) for value in values]


@rule("expand_as")
def expand_as(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Expands to the shape of another tensor."""
    x, other = args["self"], args["other"]
    offset = len(other.dims) - len(x.dims)
    out = list(other.dims)
    for position, dim in enumerate(x.dims):
        if D.size_of(dim) != 1:
            ctx.unify(dim, out[position + offset])
    ctx.carry(x)
    return Value(tuple(out), constant=x.constant and other.constant)


@rule("unfold")
def unfold(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Windows along one dim: the dim holds the windows, a new last dim the positions inside a window."""
    x, shape = args["self"], node.meta["tensor"].shape
    dim = args["dimension"] % len(x.dims)
    ctx.pin(D.channels(x.dims[dim]), f"{ctx.op} slides along it")
    out: list[Dim] = [*x.dims, D.new(shape[-1], extent=True)]
    out[dim] = D.new(shape[dim], extent=True)
    order: list[int | None] = [None if i == dim else i for i in range(len(x.dims))]
    return moved(x, out, [*order, None])


@rule("repeat", "tile")
def repeat(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Tiles whole dims; the number of repeats is fixed."""
    x = args["self"]
    name = "repeats" if "repeats" in args.nodes else "dims"
    shape = node.meta["tensor"].shape
    counts = [1] * (len(shape) - len(args[name])) + list(args[name])
    offset = len(shape) - len(x.dims)
    out: list[Dim] = []
    order: list[int | None] = []
    for position, size in enumerate(shape):
        old = x.dims[position - offset] if position >= offset else ()
        times = size // D.size_of(old)
        outer = D.new(times, extent=not isinstance(counts[position], int) or not old)
        D.pin(outer, "tiled a fixed number of times")
        out.append(outer + tuple(old))
        order.append(position - offset if times == 1 and position >= offset else None)
    return moved(x, out, order)


@rule("repeat_interleave")
def repeat_interleave(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Repeats each unit (the group size of grouped-query attention)."""
    x, repeats, dim = args["self"], args["repeats"], args["dim"]
    if not isinstance(repeats, int) or dim is None:
        ctx.pin(sum(x.dims, ()), "the number of repeats depends on data")
        return Value(tuple(D.new(size, extent=True) for size in node.meta["tensor"].shape))
    dim %= len(x.dims)
    out = list(x.dims)
    inner = D.new(repeats)
    ctx.literal(args.paths["repeats"], inner)
    out[dim] = out[dim] + inner
    return Value(tuple(out), constant=x.constant)


@rule("roll", "flip", "fliplr", "flipud", "rot90")
def permute_units(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Reorders the units of a dim: exact for positions, not for channels."""
    x = args["self"]
    moved_dims = args.get("dims") or range(len(x.dims))
    for dim in moved_dims:
        if D.channels(x.dims[dim]):
            ctx.pin(x.dims[dim], f"{ctx.op} changes the order of units")
    return Value(x.dims, constant=x.constant)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Pads extents; padded channels would be new units, so they are pinned."""
    x, shape = args["self"], node.meta["tensor"].shape
    out = list(x.dims)
    amounts = next(args[name] for name in ("pad", "padding") if name in args.nodes)
    for position, size in enumerate(shape):
        last = 2 * (len(shape) - 1 - position)
        if D.size_of(out[position]) != size or any(not isinstance(n, int) or n for n in amounts[last : last + 2]):
            ctx.pin(out[position], f"padded by {ctx.op}")
            out[position] = D.new(size, extent=True)
    return Value(tuple(out), constant=x.constant)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def pixel_shuffle(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Channels = channels of the result x r^2, outermost first."""
    x, shape = args["self"], node.meta["tensor"].shape
    lead, channels = x.dims[:-3], x.dims[-3]
    if ctx.op == "aten.channel_shuffle":
        groups = args["groups"]
        outer, inner = D.reshape([channels], [groups, D.size_of(channels) // groups])
        ctx.literal(args.paths["groups"], outer)
        return Value((*lead, inner + outer, *x.dims[-2:]))
    ctx.pin(D.channels(x.dims[-2] + x.dims[-1]), f"{ctx.op} runs along it")
    extents = tuple(D.new(size, extent=True) for size in shape[-2:])
    if ctx.op == "aten.pixel_shuffle":
        kept, _ = D.reshape([channels], [shape[-3], D.size_of(channels) // shape[-3]])
        ctx.pin(_, "factor of a pixel shuffle")
        return Value((*lead, kept, *extents))
    square = D.new(shape[-3] // D.size_of(channels))
    D.pin(square, "factor of a pixel unshuffle")
    return Value((*lead, channels + square, *extents))


@rule("tril", "triu")
def triangle(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Keeps a triangle of positions."""
    x = args["self"]
    ctx.pin(x.dims[-1] + x.dims[-2], f"{ctx.op} depends on positions")
    return Value(x.dims, constant=x.constant)


@rule("embedding")
def embedding(ctx: Context, node: fx.Node, args: Args) -> Value:
    """weight `[V, E]`, indices `[...]` -> `[..., E]`; V is looked up by index and never grows."""
    weight, indices = args["weight"], args["indices"]
    ctx.pin(weight.dims[0], "rows are looked up by index")
    ctx.carry_dims(weight, [1])
    return Value((*indices.dims, weight.dims[1]))


@rule("index", "_unsafe_index")
def index(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Advanced indexing: indexed dims are pinned, the others stay."""
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
    # Selected rows of a parameter (experts chosen per token) keep the other dims of the parameter.
    return moved(Value((), x.source), [*kept[:place], *fresh, *kept[place:]], order)


def _is_mask(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.meta["tensor"].dtype in (torch.bool, torch.uint8)


@rule("index_select", "gather", "take_along_dim", "index_copy", "index_add", "scatter", "scatter_add")
def by_dim(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Lookups along one dim; a full index tensor pins every channel dim."""
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
    """Adds an axis of classes."""
    classes = D.new(node.meta["tensor"].shape[-1], extent=True)
    return Value((*args["self"].dims, classes))


@rule(*"zeros ones empty full rand randn new_zeros new_ones new_empty new_full".split())
def filled(ctx: Context, node: fx.Node, args: Args) -> Value:
    """All units are equal: the sizes grow with the axes that the tensor is combined with."""
    raw: Sequence[object] = args.nodes["size"]
    shape = node.meta["tensor"].shape
    dims = tuple(D.new(size, extent=not isinstance(raw[i], int)) for i, size in enumerate(shape))
    ctx.sizes(args, "size", dims)
    return Value(dims, constant=True)


@rule(*"zeros_like ones_like empty_like full_like rand_like randn_like".split())
def like(ctx: Context, node: fx.Node, args: Args) -> Value:
    """The shape of another tensor."""
    return Value(args["self"].dims, constant=True)


@rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "tensor")
def counted(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Values depend on the position, so the dims never grow."""
    dims = tuple(D.new(size) for size in node.meta["tensor"].shape)
    for dim in dims:
        D.pin(dim, f"its values depend on position ({ctx.op})")
    return Value(dims, constant=True)


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
