"""Operations that make a tensor from sizes: the sizes are literals that may follow the image."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.lift.extents import Dim, Leaf, new_size
from progc.transforms.resolution.values import Args, Size, number
from progc.transforms.resolution.walk import Walk, rule


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def create(walk: Walk, node: fx.Node, args: Args) -> Any:
    """A list of sizes."""
    given = args["size"]
    dims: list[Dim] = [
        (Leaf(item.old, item.new),) if isinstance(item, Size) else walk.literal(index, number(item))
        for index, item in enumerate(given)
    ]
    walk.sizes(args.paths["size"], given, dims)
    return dims


@rule("arange")
def arange(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Counts positions; only a count in steps of one may follow the image."""
    start, step = args.get("start", 0), args.get("step", 1)
    if step != 1 or not isinstance(start, int) or not isinstance(args["end"], int):
        return None
    dim = walk.literal(0, args["end"] - start)
    walk.edit(args.paths["end"], args["end"], start + new_size(dim))
    return [dim]


@rule("linspace")
def linspace(walk: Walk, node: fx.Node, args: Args) -> Any:
    """As many positions as asked for between two fixed ends."""
    dim = walk.literal(0, args["steps"])
    walk.edit(args.paths["steps"], args["steps"], new_size(dim))
    return [dim]


@rule("eye")
def eye(walk: Walk, node: fx.Node, args: Args) -> Any:
    """A square."""
    dim = walk.literal(0, args["n"])
    walk.edit(args.paths["n"], args["n"], new_size(dim))
    if "m" in args.paths:
        return None
    return [dim, dim]
