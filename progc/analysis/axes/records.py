"""Records of the axis walk: values with factored dims, events, uses, and sizes written in the graph."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Dim
from progc.ir.program import Mode, TensorMeta


@dataclasses.dataclass(frozen=True)
class MovedTensor:
    """A parameter or buffer after views and permutations: dim i of the value holds the tensor dims `dims[i]`."""

    name: str
    dims: tuple[frozenset[int], ...]


@dataclasses.dataclass
class Value:
    """The factored dims of one tensor value.

    Attributes:
        dims: one `Dim` per dim of the tensor.
        source: the parameter or buffer that the value is a rearrangement of, if it is one.
        constant: True if the value does not depend on the inputs of the model.
        lengths: dims over which a length was taken that the value was multiplied (+1) or divided (-1) by
            (progc/analysis/axes/lengths.py).
    """

    dims: tuple[Dim, ...]
    source: MovedTensor | None = None
    constant: bool = False
    lengths: tuple[tuple[Dim, int], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The captured sizes of the dims."""
        return tuple(D.size_of(dim) for dim in self.dims)


@dataclasses.dataclass(frozen=True)
class Event:
    """What an op does with a dim, where that decides whether and how the dim can grow.

    Kinds:
        `normalise`: statistics are taken over the dim (LayerNorm, RMSNorm, mean): exact if all units have the
            same number of copies, or if it can be padded (progc/analysis/padding).
        `groups`: statistics are taken over contiguous groups of a concatenated dim: exact if all its parts grow by
            one integer factor.
        `contract`: two activations are multiplied and summed over the dim (q times k): one needs a factor.
        `copies`: exact for copies only, not for new units (a maximum).
        `residual`, `heads`, `head dim`, `conv groups`, `norm groups`, `channel multiplier`: the meaning of the dim.
    """

    kind: str
    dim: Dim
    mode: Mode
    node: str
    op: str
    operands: tuple[str, ...] = ()
    root: bool = False
    """For `contract`: True if the op itself divides by the square root of the dim's size."""


@dataclasses.dataclass(frozen=True)
class Use:
    """How one node uses one dim of a named tensor.

    Attributes:
        role: `carry` for the units of a producer or gain, `consume` for a dim that is summed over.
        part: the part of the dim that the node sees (a view may have cut it).
    """

    name: str
    dim: int
    part: Dim
    role: str
    mode: Mode
    node: str
    operand: str | None = None


@dataclasses.dataclass(frozen=True)
class Literal:
    """A number baked into the graph: the argument at `path` of `node` is the size of `parts` (or an offset in them).

    With `value` set, the argument has this value at the captured size and grows by the factor by which `parts` grow.
    """

    mode: Mode
    node: str
    path: tuple[int | str, ...]
    parts: tuple[Dim, ...]
    value: float | None = None


DECIDING = ("normalise", "groups", "contract", "copies")
"""Kinds of events that decide whether growth is exact; the other kinds only state the meaning of a dim."""


def fresh_like(meta: Any) -> Any:
    """Returns values of new extents with the shapes in `meta`."""
    if isinstance(meta, TensorMeta):
        return Value(tuple(D.new(size, extent=True) for size in meta.shape))
    if isinstance(meta, (tuple, list)):
        return [fresh_like(item) for item in meta]
    return meta


def flat_values(items: Any) -> Iterator[Value]:
    """Yields every `Value` in nested lists, tuples and dicts."""
    if isinstance(items, Value):
        yield items
    elif isinstance(items, (list, tuple)):
        for item in items:
            yield from flat_values(item)
    elif isinstance(items, dict):
        yield from flat_values(list(items.values()))


Length = tuple[Dim, int]


def length_roots(value: Value, dim: Dim) -> int | None:
    """Returns 1 if the value was divided by its length over `dim`, 0 if it has no lengths, None otherwise."""
    if not value.lengths:
        return 0
    over = [atom for length, _ in value.lengths for atom in growing_atoms(length)]
    if any(sign != -1 for _, sign in value.lengths):
        return None
    return 1 if collections.Counter(over) == collections.Counter(growing_atoms(dim)) else None


def growing_atoms(dim: Dim) -> list[D.Atom]:
    """Returns the channel atoms of a dim that are not pinned."""
    return [atom for atom in D.channels(dim) if not atom.reasons]
