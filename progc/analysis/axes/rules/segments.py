"""Rules of ops that join or cut dims: concatenation, stacking, splitting, slicing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.movement import same
from progc.ir.operations import CONCATENATIONS

END = 2**62
"""An end of a slice at or above this means "to the end"."""


@rule(*CONCATENATIONS)
def cat(ctx: Context, node: fx.Node, args: Args) -> Value:
    """The dim is a list of segments; each other dim is one axis."""
    values = [value for value in args["tensors"] if len(value.dims) > 1 or value.shape != (0,)]
    first = values[0]
    dim = (args["dim"] or 0) % len(first.dims)
    out = list(first.dims)
    for value in values[1:]:
        for position in range(len(out)):
            if position != dim:
                ctx.unify(out[position], value.dims[position])
    ctx.carry(*values)
    out[dim] = D.concat([value.dims[dim] for value in values])
    return Value(tuple(out), constant=all(value.constant for value in values))


@rule("stack")
def stack(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Adds a dim that numbers the stacked tensors."""
    values = args["tensors"]
    out = list(values[0].dims)
    for value in values[1:]:
        for a, b in zip(out, value.dims, strict=True):
            ctx.unify(a, b)
    ctx.carry(*values)
    position = D.new(len(values))
    D.pin(position, "index of stacked tensors")
    out.insert((args["dim"] or 0) % (len(out) + 1), position)
    return Value(tuple(out), constant=all(value.constant for value in values))


def cut(ctx: Context, dim: Dim, cuts: list[int]) -> list[Dim]:
    """Returns the segments of `dim` between `cuts`; new extents for an extent or a dim that cannot be cut."""
    cuts = [c for c in cuts if 0 < c < D.size_of(dim)]
    if D.channels(dim):
        try:
            return D.split(dim, sorted(set(cuts)))
        except D.Clash as clash:
            ctx.pin(dim, f"{ctx.op} cuts it at {cuts}: {clash}")
    bounds = [0, *sorted(set(cuts)), D.size_of(dim)]
    return [D.new(b - a, extent=True) for a, b in zip(bounds, bounds[1:], strict=False)]


def _parts(ctx: Context, x: Value, dim: int, sizes: Sequence[int]) -> list[Value]:
    bounds, total = [], 0
    for size in sizes[:-1]:
        total += size
        bounds.append(total)
    pieces = cut(ctx, x.dims[dim], bounds)
    ctx.carry(x)
    out = []
    for piece in pieces:
        dims = list(x.dims)
        dims[dim] = piece
        out.append(Value(tuple(dims), constant=x.constant))
    return out


@rule("chunk", "tensor_split")
def chunk(ctx: Context, node: fx.Node, args: Args) -> list[Value]:
    """Equal parts; only their number is written in the graph."""
    x, dim = args["self"], args["dim"] % len(args["self"].dims)
    sizes = [meta.shape[dim] for meta in node.meta["tensor"]]
    out = _parts(ctx, x, dim, sizes)
    offsets = args.get("indices")
    if offsets is not None:
        for position, offset in enumerate(offsets):
            if offset < 0:
                ctx.pin(x.dims[dim], "split at an offset from its end")
            else:
                ctx.literal((*args.paths["indices"], position), *(part.dims[dim] for part in out[: position + 1]))
    elif len(set(sizes)) == 1:
        for part in out[1:]:  # the parts stay equal
            ctx.unify(out[0].dims[dim], part.dims[dim])
    else:
        ctx.pin(x.dims[dim], f"{ctx.op} returns unequal parts")
    return out


@rule("split", "split_with_sizes", "unsafe_split")
def split(ctx: Context, node: fx.Node, args: Args) -> list[Value]:
    """Parts of given sizes."""
    x, dim = args["self"], args["dim"] % len(args["self"].dims)
    out = _parts(ctx, x, dim, [meta.shape[dim] for meta in node.meta["tensor"]])
    name = "split_sizes" if "split_sizes" in args.nodes else "split_size"
    if isinstance(args[name], int):
        for part in out[1:]:
            if part.shape[dim] == out[0].shape[dim]:
                ctx.unify(out[0].dims[dim], part.dims[dim])
            else:  # the last part must not become larger than the others
                ctx.pin(D.channels(part.dims[dim]), f"the smaller last part of {ctx.op}")
        ctx.literal(args.paths[name], out[0].dims[dim])
    else:
        ctx.sizes(args, name, [part.dims[dim] for part in out])
    return out


@rule("unbind")
def unbind(ctx: Context, node: fx.Node, args: Args) -> list[Value]:
    """All positions of a dim, one by one."""
    x, dim = args["self"], args["dim"] % len(args["self"].dims)
    return [_selected(ctx, x, dim) for _ in node.meta["tensor"]]


@rule("select")
def select(ctx: Context, node: fx.Node, args: Args) -> Value:
    """One position of a dim."""
    return _selected(ctx, args["self"], args["dim"] % len(args["self"].dims))


def _selected(ctx: Context, x: Value, dim: int) -> Value:
    ctx.pin(x.dims[dim], "selected by position")
    ctx.carry(x)
    return Value(x.dims[:dim] + x.dims[dim + 1 :], constant=x.constant)


@rule("slice", "narrow", "slice_copy")
def slice_(ctx: Context, node: fx.Node, args: Args) -> Value:
    """A range of a dim; its start and end are total sizes of the segments before them."""
    x = args["self"]
    dim = int(args.get("dim") or 0) % len(x.dims)
    size, stop_size = x.shape[dim], node.meta["tensor"].shape[dim]
    start = args["start"] or 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    if stop_size == size:
        _whole_slice(ctx, args, x.dims[dim])
        return same(x)
    if args.get("step", 1) not in (1, None):
        return _strided(ctx, args, x, dim, start, stop_size)
    stop = start + stop_size
    pieces = cut(ctx, x.dims[dim], [start, stop])
    taken = pieces[1] if start > 0 else pieces[0]
    before = [pieces[0]] if start > 0 else []
    after = pieces[-1] if stop < size else ()
    ctx.carry(x)
    _slice_literals(ctx, args, before, taken, after)
    dims = list(x.dims)
    dims[dim] = taken
    return Value(tuple(dims), constant=x.constant)


def _strided(ctx: Context, args: Args, x: Value, dim: int, start: int, taken: int) -> Value:
    """Every k-th unit: one position of `units * k`, if the slice covers the whole dim."""
    step, size, dims = args["step"], x.shape[dim], list(x.dims)
    raw_start, raw_end = args.nodes.get("start"), args.nodes.get("end")
    open_ended = raw_end is None or (isinstance(raw_end, int) and raw_end >= END)
    if (
        not D.channels(x.dims[dim])
        or size % step
        or start >= step
        or taken != size // step
        or not open_ended
        or (raw_start or 0) < 0
    ):
        ctx.pin(x.dims[dim], "read by a strided slice")
        dims[dim] = D.new(taken, extent=True)
    else:
        dims[dim], position = D.reshape([x.dims[dim]], [taken, step])
        D.pin(position, "selected by position")
        ctx.carry(x)
    return Value(tuple(dims), constant=x.constant)


def _whole_slice(ctx: Context, args: Args, dim: Dim) -> None:
    """A slice of the whole dim, whose bounds may still be sizes."""
    raw_start, raw_end = args.nodes.get("start"), args.nodes.get("end")
    if isinstance(raw_start, int) and raw_start < 0:
        ctx.pin(D.channels(dim), "sliced from its end")
    if "length" in args.nodes:
        ctx.literal(args.paths["length"], dim)
    elif isinstance(raw_end, int) and raw_end < END:
        ctx.literal(args.paths["end"], dim)


def _slice_literals(ctx: Context, args: Args, before: list[Dim], taken: Dim, after: Dim) -> None:
    """Offsets from the start grow with the segments before them; segments counted from the end are pinned."""
    raw_start, raw_end = args.nodes.get("start"), args.nodes.get("end")
    if isinstance(raw_start, int) and before:
        if raw_start >= 0:
            ctx.literal(args.paths["start"], *before)
        else:
            ctx.pin(D.channels(taken + after), "sliced from its end")
    if "length" in args.nodes:
        ctx.literal(args.paths["length"], taken)
    elif isinstance(raw_end, int) and raw_end < 0:
        ctx.pin(D.channels(after), "sliced from its end")
    elif isinstance(raw_end, int) and raw_end < END:
        ctx.literal(args.paths["end"], *before, taken)


@rule("glu")
def glu(ctx: Context, node: fx.Node, args: Args) -> Value:
    """First half times the sigmoid of the second half: both halves are one axis and grow in the same way."""
    x = args["self"]
    dim = args["dim"] % len(x.dims)
    value, gate = D.split(x.dims[dim], [D.size_of(x.dims[dim]) // 2])
    ctx.unify(value, gate)
    ctx.carry(x)
    return Value((*x.dims[:dim], value, *x.dims[dim + 1 :]), constant=x.constant)
