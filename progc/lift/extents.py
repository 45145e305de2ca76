"""Dims at two input sizes: a dim as a product or a concatenation of parts, each with its old and its new size.

A part with equal sizes is fixed (channels, heads, a window that stays); the others follow the image. A view assigns
parts to its dims from left to right, in memory order, and cuts a part where one of its sizes does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from progc.ir.graphs import reshape_groups

Step = tuple[Any, ...]
"""A step from a dim to a part of it: `("cut", sizes, index)`, a factor, or `("part", start, stop)`, a segment."""

Key = tuple[str, str, int]
"""A choice: graph, node, and the index of the cut at that node."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A dim, or a part of one, whose new size is still free: of a tensor, of a literal in the graph, or of an input.

    Attributes:
        owner: `("tensor", name)`, `("literal", mode, node)` or `("input", index)`.
        dim: the dim of the owner.
        path: the part of that dim.
    """

    owner: tuple[str, ...]
    dim: int
    path: tuple[Step, ...] = ()

    def step(self, step: Step) -> Origin:
        """Returns a part of this origin."""
        return Origin(self.owner, self.dim, (*self.path, step))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A part that is not divided further.

    Attributes:
        old: the old size.
        new: the new size.
        origin: set if the new size is free.
        cuts: the choices that the new size depends on.
    """

    old: int
    new: int
    origin: Origin | None = None
    cuts: frozenset[Key] = frozenset()


@dataclasses.dataclass(frozen=True)
class Cat:
    """A concatenation of dims, such as class tokens and patches."""

    parts: tuple[Dim, ...]

    @property
    def old(self) -> int:
        """Size before."""
        return sum(old_size(part) for part in self.parts)

    @property
    def new(self) -> int:
        """Size after."""
        return sum(new_size(part) for part in self.parts)


Dim = tuple["Leaf | Cat", ...]
"""A product of parts, outermost first; empty for a dim of size 1."""

Cutter = Callable[[Leaf, int, int], tuple[Leaf, Leaf]]
"""Cuts a part into (outer, inner) of the given old sizes."""

Side = Callable[[Dim], tuple[Dim, bool]]
"""Decides whether parts that grow from one position to several join the dim before them or the one after them."""


class Misfit(Exception):
    """The parts do not fit the sizes of a view, or sizes do not divide."""


def fixed(size: int) -> Dim:
    """Returns a dim with equal old and new size."""
    return () if size == 1 else (Leaf(size, size),)


def sized(old: int, new: int, cuts: frozenset[Key] = frozenset()) -> Dim:
    """Returns a dim of one part."""
    return () if old == new == 1 else (Leaf(old, new, None, cuts),)


def old_size(dim: Dim) -> int:
    """Size before."""
    return math.prod(part.old for part in dim)


def new_size(dim: Dim) -> int:
    """Size after."""
    return math.prod(part.new for part in dim)


def leaves(dim: Dim) -> Iterator[Leaf]:
    """Yields all leaves of a dim, those in concatenations included."""
    for part in dim:
        if isinstance(part, Leaf):
            yield part
        else:
            for inner in part.parts:
                yield from leaves(inner)


def grows(dim: Dim) -> bool:
    """Whether a part of the dim changes its size."""
    return any(leaf.old != leaf.new for leaf in leaves(dim))


def cuts_of(dims: Iterable[Dim]) -> frozenset[Key]:
    """Returns the choices that these dims depend on."""
    return frozenset(key for dim in dims for leaf in leaves(dim) for key in leaf.cuts)


def bare(dim: Dim) -> Dim:
    """Returns the dim without origins and choices."""
    return tuple(
        Leaf(part.old, part.new) if isinstance(part, Leaf) else Cat(tuple(bare(inner) for inner in part.parts))
        for part in dim
    )


def concat(dims: Sequence[Dim]) -> Dim:
    """Returns the concatenation of dims; nested concatenations are merged."""
    parts: list[Dim] = []
    for dim in dims:
        if len(dim) == 1 and isinstance(dim[0], Cat):
            parts.extend(dim[0].parts)
        else:
            parts.append(dim)
    if len(parts) == 1:
        return parts[0]
    if all(not grows(part) and not any(leaf.origin or leaf.cuts for leaf in leaves(part)) for part in parts):
        return fixed(sum(map(old_size, parts)))
    return (Cat(tuple(parts)),)


def reshape(dims: Sequence[Dim], sizes: Sequence[int], cut: Cutter, side: Side) -> list[Dim]:
    """Returns the dims of a view.

    Args:
        dims: of the tensor.
        sizes: old sizes of the view.
        cut: cuts a part in two.
        side: where parts of size 1 go.

    Raises:
        Misfit: the parts do not fit these sizes.
    """
    out: list[Dim] = []
    carry: Dim = ()  # parts with one old and several new positions; memory order allows two places for them
    for first, wanted in reshape_groups([old_size(dim) for dim in dims], list(sizes)):
        parts = tuple(part for index in first for part in dims[index])
        targets = [sizes[index] for index in wanted]
        if not targets:
            carry += parts
            continue
        if carry and targets[0] != 1 and out:
            carry, before = side(carry)
            if before:
                out[-1], carry = out[-1] + carry, ()
        dealt, carry = deal(carry + parts, targets, cut)
        out.extend(dealt)
        last = out[-1][-1] if out[-1] else None
        if isinstance(last, Leaf) and 1 < last.old != last.new and sizes[wanted.stop : wanted.stop + 1] == [1]:
            outer, inner = cut(last, last.old, 1)  # runs of one position, which may become longer
            out[-1] = (*out[-1][:-1], outer)
            carry = ((inner,) if inner.new > 1 else ()) + carry
    if carry and not out:
        raise Misfit("no dim of the view can hold a part that had size 1")
    return [*out[:-1], out[-1] + carry] if carry else out


def deal(parts: Dim, targets: Sequence[int], cut: Cutter) -> tuple[list[Dim], Dim]:
    """Assigns parts to dims of the old sizes `targets`, from left to right; returns these dims and the remaining parts.

    Raises:
        Misfit: the parts do not fit.
    """
    out: list[Dim] = []
    queue = list(parts)
    for position, target in enumerate(targets):
        taken: list[Leaf | Cat] = []
        left = target
        if target == 1 and queue and queue[0].old == 1:
            taken.append(queue.pop(0))
        elif target == 1 and queue and isinstance(queue[0], Leaf) and queue[0].old != queue[0].new:
            if queue[0].old in targets[position + 1 :]:  # one window that covers everything may become several
                outer, queue[0] = cut(queue[0], 1, queue[0].old)
                taken.extend([outer] if outer.new > 1 else [])
        while left > 1:
            if not queue:
                raise Misfit("sizes differ")
            part = queue.pop(0)
            if left % part.old == 0:
                taken.append(part)
                left //= part.old
                continue
            common = math.gcd(part.old, left)
            if common == 1:
                raise Misfit(f"{part.old} positions do not fit into a dim of {target}")
            if isinstance(part, Cat):
                queue[:0] = _factored(part, common)
            else:
                queue[:0] = cut(part, common, part.old // common)
        out.append(tuple(taken))
    rest = tuple(part for part in queue if part.old != 1 or part.new != 1)
    if old_size(rest) != 1:
        raise Misfit("sizes differ")
    return out, rest


def _factored(part: Cat, outer: int) -> Dim:
    """A concatenation of multiples of one inner run: `[a*i, b*i] = [a, b] * i`."""
    inner = part.old // outer
    heads: list[Dim] = []
    tail: Dim | None = None
    for piece in part.parts:
        if old_size(piece) % inner:
            raise Misfit(f"parts of {part.old} positions are not multiples of {inner}")
        dealt, rest = deal(piece, [old_size(piece) // inner, inner], _no_cut)
        if rest or (tail is not None and bare(tail) != bare(dealt[1])):
            raise Misfit(f"parts of {part.old} positions have different runs of {inner}")
        heads.append(dealt[0])
        tail = dealt[1]
    assert tail is not None
    return concat(heads) + tail


def _no_cut(leaf: Leaf, outer: int, inner: int) -> tuple[Leaf, Leaf]:
    if leaf.old != leaf.new:
        raise Misfit(f"{leaf.old} positions in a concatenation cannot be cut into {outer} x {inner}")
    return Leaf(outer, outer), Leaf(inner, inner)


def stretch(dim: Dim, start: int, stop: int) -> tuple[Dim, int] | None:
    """Returns the old positions `start` to `stop` of a dim, and their new start.

    Returns None if the positions are not made of concatenated parts.
    """
    if not (start or stop < old_size(dim)):
        return dim, 0
    if not grows(dim) and not any(leaf.origin for leaf in leaves(dim)):
        return fixed(stop - start), start
    if len(dim) == 1 and isinstance(dim[0], Leaf) and dim[0].old == dim[0].new and dim[0].origin is not None:
        leaf = dim[0]
        assert leaf.origin is not None
        return (Leaf(stop - start, stop - start, leaf.origin.step(("part", start, stop))),), start
    if len(dim) != 1 or not isinstance(dim[0], Cat):
        return None
    found: list[Dim] = []
    begin: int | None = None
    old = new = 0
    for part in dim[0].parts:
        size = old_size(part)
        low, high = max(start, old), min(stop, old + size)
        if low < high:
            inside = stretch(part, low - old, high - old)
            if inside is None:
                return None
            begin = new + inside[1] if begin is None else begin
            found.append(inside[0])
        old, new = old + size, new + new_size(part)
    if begin is None:
        return None
    return concat(found), begin


def to_json(dim: Dim) -> list[Any]:
    """Returns plain data, `[[old, new], {"parts": [...]}]`; `from_json` is the inverse."""
    return [
        [part.old, part.new] if isinstance(part, Leaf) else {"parts": [to_json(inner) for inner in part.parts]}
        for part in dim
    ]


def from_json(data: Sequence[Any]) -> Dim:
    """Reads what `to_json` wrote."""
    return tuple(
        Cat(tuple(from_json(inner) for inner in item["parts"])) if isinstance(item, dict) else Leaf(item[0], item[1])
        for item in data
    )
