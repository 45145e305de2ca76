"""Values of a walk over a graph at two sizes, the arguments that a rule gets, and the facts that a walk starts from.

Facts say which side of a cut stays and what follows the image. A walk starts from them and ends with the dims of every
value or with a contradiction. The solver (progc/transforms/resolution/solve.py) then changes the facts and walks again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from progc.ir.layouts import Layout
from progc.lift.extents import Cat, Dim, Key, Leaf, Origin, Step, fixed, new_size, old_size

Path = tuple["int | str", ...]
"""Place of an argument: position or keyword, then indices into lists."""


@dataclasses.dataclass(frozen=True)
class SizedValue:
    """A tensor: its dims at both sizes, and its layout at the new one.

    `table` names the tensor of the program whose values it holds, at most moved. `counts`: it numbers the positions of
    the image. `summed`: over how many positions it is a sum, before and after.
    """

    dims: tuple[Dim, ...]
    layout: Layout
    table: str | None = None
    counts: bool = False
    summed: tuple[int, int] | None = None

    @property
    def old(self) -> tuple[int, ...]:
        """Shape before."""
        return tuple(map(old_size, self.dims))

    @property
    def new(self) -> tuple[int, ...]:
        """Shape after."""
        return tuple(map(new_size, self.dims))


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """A number that depends on the batch."""

    old: int
    new: int


class SizedArgs:
    """Arguments of an operation by schema name.

    Args:
        resolve: turns an argument of the graph into values, sizes and plain data.
        node: the call of the operation.
    """

    def __init__(self, resolve: Callable[[Any], Any], node: fx.Node) -> None:
        self.paths: dict[str, Path] = {}
        self.values: dict[str, Any] = {}
        assert isinstance(node.target, torch._ops.OpOverload)
        for position, argument in enumerate(node.target._schema.arguments):
            name = argument.name
            if position < len(node.args):
                raw: Any = node.args[position]
                self.paths[name] = (position,)
            elif name in node.kwargs:
                raw = node.kwargs[name]
                self.paths[name] = (name,)
            else:
                raw = argument.default_value if argument.has_default_value() else None
            self.values[name] = resolve(raw)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the argument, or `default` if the operation has none of that name."""
        found = self.values.get(name)
        return default if found is None else found

    def first(self) -> SizedValue:
        """The first tensor argument."""
        return next(self.tensors())

    def tensors(self) -> Iterator[SizedValue]:
        """All tensor arguments, lists flattened."""
        for value in self.values.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, SizedValue):
                    yield item


def number(value: Any) -> int:
    """A size before the change."""
    return value.old if isinstance(value, BatchSize) else int(value)


class SizeClash(Exception):
    """Two sizes meet that should be equal.

    Attributes:
        cuts: choices that could be made differently.
        where: the operation, for messages.
    """

    def __init__(self, message: str, cuts: frozenset[Key] = frozenset(), where: str = "") -> None:
        self.cuts, self.where = cuts, where
        super().__init__(message)


class Indivisible(Exception):
    """A size that windows, patches or strides do not divide."""


@dataclasses.dataclass
class SizeFacts:
    """The assumptions of one walk.

    Attributes:
        scale: whether windows scale with the image and their number stays, if nothing else decides.
        turned: cuts whose other side stays.
        alike: the likeness of turned cuts, so that those of other blocks are turned with them.
        settled: cuts that were tried both ways and stay as they are.
        assigned: dims, and parts of dims, of tensors, literals and inputs that follow the image.
    """

    scale: bool = False
    turned: set[Key] = dataclasses.field(default_factory=set)
    alike: set[Any] = dataclasses.field(default_factory=set)
    settled: set[Key] = dataclasses.field(default_factory=set)
    assigned: dict[tuple[tuple[str, ...], int], dict[tuple[Step, ...], Dim]] = dataclasses.field(default_factory=dict)

    def dim(self, owner: tuple[str, ...], dim: int, size: int) -> Dim:
        """Returns the dim of a tensor, a literal or an input: the assigned one, else one that is free to follow."""
        if size == 1:
            return ()
        return _built(self.assigned.get((owner, dim), {}), Origin(owner, dim), size)

    def assign(self, origin: Origin, dim: Dim) -> bool:
        """Makes a part follow the image; returns False if that was known."""
        known = self.assigned.setdefault((origin.owner, origin.dim), {})
        if known.get(origin.path) == dim:
            return False
        if origin.path in known:
            raise SizeClash(f"{describe(origin)} would have two sizes")
        known[origin.path] = dim
        return True


def _built(known: Mapping[tuple[Step, ...], Dim], origin: Origin, size: int) -> Dim:
    path = origin.path
    if path in known:
        return known[path]
    steps = {found[len(path)] for found in known if len(found) > len(path) and found[: len(path)] == path}
    if not steps:
        return (Leaf(size, size, origin),)
    kinds = {(step[0], step[1] if step[0] == "cut" else None) for step in steps}
    if len(kinds) > 1:
        raise SizeClash(f"{describe(origin)} is read in more than one way")
    if next(iter(kinds))[0] == "cut":
        sizes = next(iter(steps))[1]
        parts: Dim = ()
        for index, part in enumerate(sizes):
            parts += _built(known, origin.step(("cut", sizes, index)), part) if part > 1 else ()
        return parts
    bounds = sorted({0, size, *(step[1] for step in steps), *(step[2] for step in steps)})
    pieces: list[Dim] = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        step = ("part", start, stop)
        pieces.append(_built(known, origin.step(step), stop - start) if step in steps else fixed(stop - start))
    if sum(map(old_size, pieces)) != size:
        raise SizeClash(f"{describe(origin)} is read in parts that overlap")
    return (Cat(tuple(pieces)),)


def describe(origin: Origin) -> str:
    """Returns a description for messages, such as `tensor pos_embed, dim 1`."""
    kind, *rest = origin.owner
    return f"{kind} {rest[-1]}, dim {origin.dim}"
