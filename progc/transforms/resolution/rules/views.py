"""Operations with a list of sizes: views, expand, repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from progc.lift.extents import Dim, Leaf, fixed, new_size, old_size, reshape
from progc.transforms.resolution.facts import Clash
from progc.transforms.resolution.values import Args, Size, Value, number
from progc.transforms.resolution.walk import Walk, rule


@rule("view", "reshape", "_unsafe_view", "view_copy")
def view(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Parts in memory order, dealt out to the new sizes."""
    value: Value = args.first()
    name = "shape" if "shape" in args.values else "size"
    given = args[name]
    if not isinstance(given, list):
        return None  # view as another dtype
    sizes = _whole(given, value.old)
    dims = reshape(value.dims, sizes, walk.cut, walk.side)
    walk.sizes(args.paths[name], given, dims)
    return dims


@rule("flatten")
def flatten(walk: Walk, node: fx.Node, args: Args) -> Any:
    """A run of dims becomes their product."""
    value, rank = args.first(), len(args.first().dims)
    start, end = args["start_dim"] % rank, args["end_dim"] % rank
    if start == end:
        return value.dims
    joined: Dim = ()
    for dim in value.dims[start : end + 1]:
        joined += dim
    return [*value.dims[:start], joined, *value.dims[end + 1 :]]


@rule("unflatten")
def unflatten(walk: Walk, node: fx.Node, args: Args) -> Any:
    """One dim becomes several."""
    value, given = args.first(), args["sizes"]
    dim = args["dim"] % len(value.dims)
    sizes = _whole(given, (old_size(value.dims[dim]),))
    dims = reshape([value.dims[dim]], sizes, walk.cut, walk.side)
    walk.sizes(args.paths["sizes"], given, dims)
    return [*value.dims[:dim], *dims, *value.dims[dim + 1 :]]


def _whole(given: Sequence[Any], shape: Sequence[int]) -> list[int]:
    sizes = [number(item) for item in given]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // known if known else 0
    return sizes


@rule("expand", "broadcast_to", "expand_copy")
def expand(walk: Walk, node: fx.Node, args: Args) -> Any:
    """A dim of one unit repeated; how often is a literal of its own."""
    value, given = args.first(), args["size"]
    added = len(given) - len(value.dims)
    dims: list[Dim] = []
    for index, item in enumerate(given):
        own = value.dims[index - added] if index >= added else ()
        if isinstance(item, Size) and old_size(own) == 1:
            dims.append(((Leaf(item.old, item.new),)) if item.old != 1 or item.new != 1 else ())
        elif number(item) in (-1, old_size(own)):
            dims.append(own)
        elif old_size(own) == 1:
            dims.append(walk.literal(index, number(item)))
        else:
            raise Clash(f"{old_size(own)} cannot be expanded to {number(item)}", where=walk.where())
    walk.sizes(args.paths["size"], given, dims)
    return dims


@rule("expand_as")
def expand_as(walk: Walk, node: fx.Node, args: Args) -> Any:
    """The dims of the other operand."""
    return args["other"].dims


@rule("repeat", "tile")
def repeat(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Copies outside, units inside."""
    value = args.first()
    given = args["repeats"] if "repeats" in args.values else args["dims"]
    added = len(given) - len(value.dims)
    if added < 0:
        return None
    dims: list[Dim] = []
    for index, item in enumerate(given):
        own = value.dims[index - added] if index >= added else ()
        times = (Leaf(item.old, item.new),) if isinstance(item, Size) else fixed(int(item))
        dims.append(own if old_size(times) == new_size(times) == 1 else times + own)
    return dims


@rule("repeat_interleave")
def repeat_interleave(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Units outside, copies inside."""
    value, times = args.first(), args.get("repeats")
    if not isinstance(times, int) or args.get("dim") is None:
        return None
    dim = args["dim"] % len(value.dims)
    return [*value.dims[:dim], value.dims[dim] + fixed(times), *value.dims[dim + 1 :]]
