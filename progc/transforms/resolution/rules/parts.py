"""Rules of operations that combine values and select parts of them."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from progc.ir.operations import CONCATENATIONS
from progc.ir.program import TensorMeta
from progc.lift.extents import Dim, concat, cuts_of, fixed, grows, leaves, new_size, old_size, sized, stretch
from progc.transforms.resolution.values import Indivisible, SizeClash, SizedArgs, SizedValue, number
from progc.transforms.resolution.walk import Walk, rule


@rule(*CONCATENATIONS, "hstack", "vstack")
def cat(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """One dim concatenated, the others shared."""
    values = [value for value in args.tensors() if value.old != (0,)]
    rank = len(values[0].dims)
    dim = args.get("dim", 0) % rank
    dims = [
        concat([value.dims[index] for value in values])
        if index == dim
        else walk.meet([value.dims[index] for value in values], values)
        for index in range(rank)
    ]
    for operand in walk.node.all_input_nodes:
        own = walk.values[operand.name]
        if isinstance(own, SizedValue) and len(own.dims) == rank:
            walk.take(operand, [own.dims[i] if i == dim else d for i, d in enumerate(dims)])
    return dims


@rule("stack")
def stack(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A new dim with one entry per operand."""
    values = list(args.tensors())
    shared = [walk.meet([value.dims[i] for value in values], values) for i in range(len(values[0].dims))]
    for operand in walk.node.all_input_nodes:
        walk.take(operand, shared)
    shared.insert(args["dim"] % (len(shared) + 1), fixed(len(values)))
    return shared


@rule("slice", "slice_copy", "narrow")
def slice_(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A range of a dim: whole parts of a concatenation, or a range counted from one end."""
    value = args.first()
    dim = args["dim"] % len(value.dims)
    own = value.dims[dim]
    size, narrow = old_size(own), "length" in args.values
    start = number(args.get("start", 0))
    stop = start + number(args["length"]) if narrow else number(args.get("end", size))
    step = int(args.get("step", 1))
    low, high = _bounded(start, size), _bounded(stop, size)
    if high <= low:
        raise SizeClash("an empty part is selected", where=walk.where())
    if step != 1:
        if low == 0 and high == size:  # every second position: a stride
            if grows(own) and new_size(own) % step and not size % step:
                raise Indivisible(f"{new_size(own)} positions are not a multiple of the step {step}")
            old, new = math.ceil(size / step), math.ceil(new_size(own) / step)
            return [*value.dims[:dim], sized(old, new, cuts_of([own])), *value.dims[dim + 1 :]]
        if not grows(own):
            return [*value.dims[:dim], fixed(len(range(low, high, step))), *value.dims[dim + 1 :]]
        # A phase of a stride: `x[1::2]`. It has as many positions as the other phases if the step divides the size.
        if stop < size or low >= step or size % step or new_size(own) % step:
            raise Indivisible(f"{new_size(own)} positions are not a multiple of the step {step}")
        return [*value.dims[:dim], sized(size // step, new_size(own) // step, cuts_of([own])), *value.dims[dim + 1 :]]
    found = stretch(own, low, high)
    if found is not None:
        part, begin = found
        _bounds(walk, args, narrow, (start, stop, size), (begin, begin + new_size(part), new_size(own)))
    else:
        part = _counted(walk, own, (start, low), (stop, high))
        if narrow:
            walk.edit(args.paths["length"], high - low, new_size(part))
        elif stop > 0 and high == size and stop < 2**31:
            walk.edit(args.paths["end"], stop, new_size(own))
    return [*value.dims[:dim], part, *value.dims[dim + 1 :]]


def _bounded(place: int, size: int) -> int:
    return max(0, min(size, place + size if place < 0 else place))


def _bounds(walk: Walk, args: SizedArgs, narrow: bool, old: tuple[int, int, int], new: tuple[int, int, int]) -> None:
    """Rewrites start and end; a negative one counts from the other end."""
    start, stop, size = old
    if "start" in args.paths and args["start"] is not None:
        walk.edit(args.paths["start"], start, new[0] if start >= 0 else new[0] - new[2])
    if narrow:
        walk.edit(args.paths["length"], stop - start, new[1] - new[0])
    elif "end" in args.paths and args["end"] is not None and not (stop >= size and stop > 2**31):
        walk.edit(args.paths["end"], stop, new[1] if stop >= 0 else new[1] - new[2])


def _counted(walk: Walk, own: Dim, start: tuple[int, int], stop: tuple[int, int]) -> Dim:
    """A range inside positions of the image: a few from one end, or all but a few."""
    size, new = old_size(own), new_size(own)
    if stop[1] == size or stop[0] < 0:
        first = start[1] if start[0] >= 0 else start[1] - size + new
        last = new - (size - stop[1])
    elif start[1] == 0 and stop[0] >= 0:
        first, last = 0, stop[1]
    else:
        raise SizeClash(
            f"positions {start[1]} to {stop[1]} of {size} are selected; which ones to select at the new size is "
            "unknown",
            cuts_of([own]),
            walk.where(),
        )
    cut_at = [place for place in (start[1], size - stop[1]) if place and start[0] >= 0]
    kept = stop[1] if start[1] == 0 and 0 < stop[0] < size else max(cut_at, default=0)
    if kept * 4 > size:  # neither a border nor all but a border: perhaps half the image
        raise SizeClash(
            f"positions {start[1]} to {stop[1]} of {size} are selected; which ones to select at the new size is "
            "unknown",
            cuts_of([own]),
            walk.where(),
        )
    if last <= first:
        raise Indivisible(f"{new} positions are too few")
    return sized(stop[1] - start[1], last - first, cuts_of([own]))


@rule("select", "select_copy")
def select(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """One position of a dim."""
    value, dim = args.first(), args["dim"] % len(args.first().dims)
    own, index = value.dims[dim], number(args["index"])
    place = index % old_size(own)
    if grows(own):
        found = stretch(own, place, place + 1)
        if found is not None and new_size(found[0]) == 1:
            walk.edit(args.paths["index"], index, found[1] if index >= 0 else found[1] - new_size(own))
        elif index not in (0, -1):
            raise SizeClash(
                f"position {index} of {old_size(own)} is selected; which one to select at the new size is unknown",
                cuts_of([own]),
                walk.where(),
            )
    return [*value.dims[:dim], *value.dims[dim + 1 :]]


@rule("unbind")
def unbind(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Every position of a dim separately."""
    value, dim = args.first(), args.get("dim", 0) % len(args.first().dims)
    if grows(value.dims[dim]):
        raise SizeClash("every position is selected separately", cuts_of([value.dims[dim]]), walk.where())
    return [[*value.dims[:dim], *value.dims[dim + 1 :]] for _ in range(old_size(value.dims[dim]))]


@rule("chunk", "tensor_split")
def chunk(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Equal parts."""
    return _split(walk, node, args, None)


@rule("split", "split_with_sizes", "split_copy", "split_with_sizes_copy")
def split(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Parts of given sizes; their number stays."""
    name = "split_size" if "split_size" in args.values else "split_sizes"
    return _split(walk, node, args, name)


def _split(walk: Walk, node: fx.Node, args: SizedArgs, name: str | None) -> list[list[Dim]]:
    value, dim = args.first(), args.get("dim", 0) % len(args.first().dims)
    own, metas = value.dims[dim], node.meta["tensor"]
    old = [meta.shape[dim] for meta in metas if isinstance(meta, TensorMeta)]
    parts = _pieces(walk, own, old)
    given = args[name] if name else None
    for index, part in enumerate(parts):
        if isinstance(given, list):
            assert name is not None
            walk.edit((*args.paths[name], index), old[index], new_size(part))
    if name and not isinstance(given, list):
        walk.edit(args.paths[name], number(given), new_size(parts[0]))
    return [[*value.dims[:dim], part, *value.dims[dim + 1 :]] for part in parts]


def _pieces(walk: Walk, own: Dim, old: list[int]) -> list[Dim]:
    if not grows(own) and not any(leaf.origin for leaf in leaves(own)):
        return [fixed(size) for size in old]
    found: list[Dim] = []
    place = 0
    for size in old:
        piece = stretch(own, place, place + size)
        if piece is None:
            break
        found.append(piece[0])
        place += size
    if len(found) == len(old):
        return found
    if len(set(old)) > 1:
        raise SizeClash(
            f"{old_size(own)} is split into {old}; the parts at the new size are unknown", cuts_of([own]), walk.where()
        )
    if new_size(own) % len(old):
        raise Indivisible(f"{new_size(own)} positions are not a multiple of {len(old)} parts")
    return [sized(size, new_size(own) // len(old), cuts_of([own])) for size in old]
