"""What the walk over a graph writes down: values with factored dims, events, uses and baked sizes."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Dim
from progc.ir.program import Mode, TensorMeta


@dataclasses.dataclass(frozen=True)
class MovedTensor:
    """A value that is a parameter or buffer, moved about: `dims[i]` are the tensor dims that value dim i holds."""

    name: str
    dims: tuple[frozenset[int], ...]


@dataclasses.dataclass
class Value:
    """Dims of one tensor value.

    `source` is set while the value is just a re-arranged parameter or buffer; `constant` while it depends on no
    user input. `lengths` are dims over which a length was taken that the value was multiplied (+1) or divided (-1) by
    (progc/analysis/axes/lengths.py).
    """

    dims: tuple[Dim, ...]
    source: MovedTensor | None = None
    constant: bool = False
    lengths: tuple[tuple[Dim, int], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(D.size_of(dim) for dim in self.dims)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something an op does with a dim that decides whether and how it can grow.

    Kinds:
        `normalise`: statistics are taken over the dim (LayerNorm, RMSNorm, mean): exact if all units have the
            same number of copies, or if it can be padded (progc/analysis/padding).
        `groups`: statistics over contiguous groups of a dim that has seams: exact if all its parts grow by
            one whole factor.
        `contract`: two activations are multiplied and summed over the dim (q times k): one needs a factor.
        `copies`: exact for copies only, not for new units (a maximum).
        `residual`, `heads`, `head dim`, `conv groups`, `norm groups`, `channel multiplier`: what the
            dim means.
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
    """How one node uses one dim of a named tensor: `carry` (a producer's or gain's units) or `consume`.

    `part` is what of the dim the node sees at this place (a view may have cut it).
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
"""Kinds of events that say whether growth is exact; the others only say what a dim means."""


def fresh_like(meta: Any) -> Any:
    """Values of fresh extents with the shapes in `meta`."""
    if isinstance(meta, TensorMeta):
        return Value(tuple(D.new(size, extent=True) for size in meta.shape))
    if isinstance(meta, (tuple, list)):
        return [fresh_like(item) for item in meta]
    return meta


Length = tuple[Dim, int]


def length_roots(value: Value, dim: Dim) -> int | None:
    """1 if the value was divided by its length over `dim`, 0 if it knows of no length, None if of another one."""
    if not value.lengths:
        return 0
    over = [atom for length, _ in value.lengths for atom in growing_atoms(length)]
    if any(sign != -1 for _, sign in value.lengths):
        return None
    return 1 if collections.Counter(over) == collections.Counter(growing_atoms(dim)) else None


def growing_atoms(dim: Dim) -> list[D.Atom]:
    return [atom for atom in D.channels(dim) if not atom.reasons]
