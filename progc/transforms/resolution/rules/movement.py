"""Rules of operations that move values: permutations, reductions, factories, lookups and views.

Factories make a tensor from sizes; these sizes are literals that may follow the image. Lookups pick rows of a table by
the values of another tensor. Views, expand and repeat have a list of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from progc.lift.extents import Dim, Leaf, fixed, new_size, old_size, reshape
from progc.transforms.resolution.values import BatchSize, SizeClash, SizedArgs, SizedValue, number
from progc.transforms.resolution.walk import Walk, rule


@rule("permute")
def permute(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Dims in another order."""
    dims = args.first().dims
    return [dims[index] for index in args["dims"]]


@rule("transpose", "swapaxes", "swapdims")
def transpose(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Two dims swapped."""
    dims = list(args.first().dims)
    a, b = (args[name] for name in [name for name in args.values if name != "self"][:2])
    dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("t", "mT", "numpy_T", "matrix_H", "adjoint")
def transposed(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """The last two dims swapped."""
    dims = args.first().dims
    return dims if len(dims) < 2 else [*dims[:-2], dims[-1], dims[-2]]


@rule("movedim", "moveaxis")
def movedim(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Dims moved to other positions."""
    dims, rank = args.first().dims, len(args.first().dims)
    source, target = ([item] if isinstance(item, int) else item for item in (args["source"], args["destination"]))
    places = {t % rank: dims[s % rank] for s, t in zip(source, target, strict=True)}
    rest = iter(dim for index, dim in enumerate(dims) if index not in {s % rank for s in source})
    return [places[index] if index in places else next(rest) for index in range(rank)]


@rule("unsqueeze")
def unsqueeze(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A new dim of size 1."""
    dims: list[Dim] = list(args.first().dims)
    dims.insert(args["dim"] % (len(dims) + 1), ())
    return dims


@rule("squeeze")
def squeeze(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Dims of size 1 removed. If such a dim would become larger, the operation itself refuses."""
    dims = args.first().dims
    chosen = args.get("dim", range(len(dims)))
    places = {index % len(dims) for index in ([chosen] if isinstance(chosen, int) else chosen)}
    return [dim for index, dim in enumerate(dims) if index not in places or old_size(dim) != 1]


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "argmax", "argmin", "prod", "any", "all", "norm",
      "linalg_vector_norm", "count_nonzero")  # fmt: skip
def reduce(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Reduced dims are removed; the others stay in order."""
    dims = args.first().dims
    chosen = args.get("dim")
    if chosen is None or chosen == []:
        return None if args.get("keepdim") else []
    places = {index % len(dims) for index in ([chosen] if isinstance(chosen, int) else chosen)} if dims else set()
    kept = [() if index in places else dim for index, dim in enumerate(dims)]
    return kept if args.get("keepdim") else [dim for index, dim in enumerate(kept) if index not in places]


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def create(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A list of sizes."""
    given = args["size"]
    dims: list[Dim] = [
        (Leaf(item.old, item.new),) if isinstance(item, BatchSize) else walk.literal(index, number(item))
        for index, item in enumerate(given)
    ]
    walk.sizes(args.paths["size"], given, dims)
    return dims


@rule("arange")
def arange(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Counts positions; only a count in steps of one can follow the image."""
    start, step = args.get("start", 0), args.get("step", 1)
    if step != 1 or not isinstance(start, int) or not isinstance(args["end"], int):
        return None
    dim = walk.literal(0, args["end"] - start)
    walk.edit(args.paths["end"], args["end"], start + new_size(dim))
    return [dim]


@rule("linspace")
def linspace(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A number of positions between two fixed ends."""
    dim = walk.literal(0, args["steps"])
    walk.edit(args.paths["steps"], args["steps"], new_size(dim))
    return [dim]


@rule("eye")
def eye(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A square."""
    dim = walk.literal(0, args["n"])
    walk.edit(args.paths["n"], args["n"], new_size(dim))
    if "m" in args.paths:
        return None
    return [dim, dim]


@rule("index", "_unsafe_index")
def index(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """`table[i]`: the dims of the index replace the dim that it picks from."""
    value: SizedValue = args["self"]
    places = [place for place, item in enumerate(args["indices"]) if isinstance(item, SizedValue)]
    if len(places) != 1:
        return None
    picker: SizedValue = args["indices"][places[0]]
    _looked_up(walk, value, picker)
    return [*value.dims[: places[0]], *picker.dims, *value.dims[places[0] + 1 :]]


@rule("index_select")
def index_select(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """As `index`, along a given dim."""
    value, picker, dim = args["self"], args["index"], args["dim"] % len(args["self"].dims)
    _looked_up(walk, value, picker)
    return [*value.dims[:dim], *picker.dims, *value.dims[dim + 1 :]]


@rule("embedding")
def embedding(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Rows of a matrix."""
    weight, picker = args["weight"], args["indices"]
    _looked_up(walk, weight, picker)
    dims: list[Dim] = [*picker.dims, weight.dims[-1]]
    return dims


def _looked_up(walk: Walk, table: SizedValue, picker: SizedValue) -> None:
    if table.table is not None and picker.table is not None:
        walk.lookups.add((table.table, picker.table))


@rule("view", "reshape", "_unsafe_view", "view_copy")
def view(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Parts in memory order, distributed to the new sizes."""
    value: SizedValue = args.first()
    name = "shape" if "shape" in args.values else "size"
    given = args[name]
    if not isinstance(given, list):
        return None  # view as another dtype
    sizes = _whole(given, value.old)
    dims = reshape(value.dims, sizes, walk.cut, walk.side)
    walk.sizes(args.paths[name], given, dims)
    return dims


@rule("flatten")
def flatten(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
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
def unflatten(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
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
def expand(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A dim of size 1 repeated; the number of repeats is a separate literal."""
    value, given = args.first(), args["size"]
    added = len(given) - len(value.dims)
    dims: list[Dim] = []
    for index, item in enumerate(given):
        own = value.dims[index - added] if index >= added else ()
        if isinstance(item, BatchSize) and old_size(own) == 1:
            dims.append(((Leaf(item.old, item.new),)) if item.old != 1 or item.new != 1 else ())
        elif number(item) in (-1, old_size(own)):
            dims.append(own)
        elif old_size(own) == 1:
            dims.append(walk.literal(index, number(item)))
        else:
            raise SizeClash(f"{old_size(own)} cannot be expanded to {number(item)}", where=walk.where())
    walk.sizes(args.paths["size"], given, dims)
    return dims


@rule("expand_as")
def expand_as(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """The dims of the other operand."""
    return args["other"].dims


@rule("repeat", "tile")
def repeat(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Copies outside, units inside."""
    value = args.first()
    given = args["repeats"] if "repeats" in args.values else args["dims"]
    added = len(given) - len(value.dims)
    if added < 0:
        return None
    dims: list[Dim] = []
    for index, item in enumerate(given):
        own = value.dims[index - added] if index >= added else ()
        times = (Leaf(item.old, item.new),) if isinstance(item, BatchSize) else fixed(int(item))
        dims.append(own if old_size(times) == new_size(times) == 1 else times + own)
    return dims


@rule("repeat_interleave")
def repeat_interleave(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Units outside, copies inside."""
    value, times = args.first(), args.get("repeats")
    if not isinstance(times, int) or args.get("dim") is None:
        return None
    dim = args["dim"] % len(value.dims)
    return [*value.dims[:dim], value.dims[dim] + fixed(times), *value.dims[dim + 1 :]]
