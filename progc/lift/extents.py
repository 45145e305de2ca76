"""Dims at two sizes: every dim of every value as a product or a concatenation of parts, each before and after.

A part that is the same before and after is fixed (channels, heads, a window that stays); the others follow the image.
A view deals parts out from left to right, as torch lays memory out, and cuts a part where its sizes cut it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from progc.ir.graphs import reshape_groups

Step = tuple[Any, ...]
"""One way down into a dim: `("cut", sizes, index)` a factor of it, `("part", start, stop)` a stretch of it."""

Key = tuple[str, str, int]
"""A choice: graph, node, and the how-manieth cut of that node."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A dim, or a part of it, whose size is free to follow: of a tensor, of a literal in the graph, of an input.

    Attributes:
        owner: `("tensor", name)`, `("literal", mode, node)` or `("input", index)`.
        dim: which dim of it.
        path: which part of that dim.
    """

    owner: tuple[str, ...]
    dim: int
    path: tuple[Step, ...] = ()

    def step(self, step: Step) -> Origin:
        """A part of this one."""
        return Origin(self.owner, self.dim, (*self.path, step))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A part that is not divided further.

    Attributes:
        old: size before.
        new: size after.
        origin: set if its size is free.
        cuts: the choices that its size depends on.
    """

    old: int
    new: int
    origin: Origin | None = None
    cuts: frozenset[Key] = frozenset()


@dataclasses.dataclass(frozen=True)
class Cat:
    """A concatenation of dims: class tokens, then the patches."""

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
"""Product of parts, outermost first; empty for a dim of size 1."""

Cutter = Callable[[Leaf, int, int], tuple[Leaf, Leaf]]
"""Cuts a part into (outer, inner) of the given old sizes."""

Side = Callable[[Dim], tuple[Dim, bool]]
"""Whether what had one position and has several goes with the dim before it, else with the one behind."""


class Misfit(Exception):
    """Parts that cannot be dealt out to the sizes of a view, or sizes that do not divide."""


def fixed(size: int) -> Dim:
    """A dim that stays."""
    return () if size == 1 else (Leaf(size, size),)


def sized(old: int, new: int, cuts: frozenset[Key] = frozenset()) -> Dim:
    """A dim of one part."""
    return () if old == new == 1 else (Leaf(old, new, None, cuts),)


def old_size(dim: Dim) -> int:
    """Size before."""
    return math.prod(part.old for part in dim)


def new_size(dim: Dim) -> int:
    """Size after."""
    return math.prod(part.new for part in dim)


def leaves(dim: Dim) -> Iterator[Leaf]:
    """All parts, those of concatenations included."""
    for part in dim:
        if isinstance(part, Leaf):
            yield part
        else:
            for inner in part.parts:
                yield from leaves(inner)


def grows(dim: Dim) -> bool:
    """Whether any part changes its size."""
    return any(leaf.old != leaf.new for leaf in leaves(dim))


def cuts_of(dims: Iterable[Dim]) -> frozenset[Key]:
    """The choices that these dims depend on."""
    return frozenset(key for dim in dims for leaf in leaves(dim) for key in leaf.cuts)


def bare(dim: Dim) -> Dim:
    """The same sizes without origins and choices."""
    return tuple(
        Leaf(part.old, part.new) if isinstance(part, Leaf) else Cat(tuple(bare(inner) for inner in part.parts))
        for part in dim
    )


def concat(dims: Sequence[Dim]) -> Dim:
    """The dim of a concatenation; neighbouring concatenations become one."""
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
    """The dims after a view to `sizes` (before the change).

    Raises:
        Misfit: the parts do not fit these sizes.
    """
    out: list[Dim] = []
    carry: Dim = ()  # what had one position and has several now; memory order allows for two places
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
            outer, inner = cut(last, last.old, 1)  # runs of one position: they may become longer
            out[-1] = (*out[-1][:-1], outer)
            carry = ((inner,) if inner.new > 1 else ()) + carry
    if carry and not out:
        raise Misfit("positions that were one before have no dim to go to")
    return [*out[:-1], out[-1] + carry] if carry else out


def deal(parts: Dim, targets: Sequence[int], cut: Cutter) -> tuple[list[Dim], Dim]:
    """Hands parts out to dims of the sizes `targets`, from left to right; also returns what is left over.

    Raises:
        Misfit: they do not fit.
    """
    out: list[Dim] = []
    queue = list(parts)
    for position, target in enumerate(targets):
        taken: list[Leaf | Cat] = []
        left = target
        if target == 1 and queue and queue[0].old == 1:
            taken.append(queue.pop(0))
        elif target == 1 and queue and isinstance(queue[0], Leaf) and queue[0].old != queue[0].new:
            if queue[0].old in targets[position + 1 :]:  # one window that covers all: it may become several
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
                raise Misfit(f"{part.old} positions cannot be dealt out to {target}")
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
            raise Misfit(f"parts of {part.old} are no multiples of {inner}")
        dealt, rest = deal(piece, [old_size(piece) // inner, inner], _no_cut)
        if rest or (tail is not None and bare(tail) != bare(dealt[1])):
            raise Misfit(f"parts of {part.old} have different runs of {inner}")
        heads.append(dealt[0])
        tail = dealt[1]
    assert tail is not None
    return concat(heads) + tail


def _no_cut(leaf: Leaf, outer: int, inner: int) -> tuple[Leaf, Leaf]:
    if leaf.old != leaf.new:
        raise Misfit(f"{leaf.old} positions in a concatenation are cut into {outer} x {inner}")
    return Leaf(outer, outer), Leaf(inner, inner)


def stretch(dim: Dim, start: int, stop: int) -> tuple[Dim, int] | None:
    """Positions `start` to `stop` (before the change) of a dim, and where they start after it.

    None if that is not a matter of concatenated parts alone.
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
    """`[[old, new], {"parts": [...]}]`; `from_json` is the inverse."""
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
