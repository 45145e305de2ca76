"""Factored dims: every tensor dim is a product of atoms, and an atom may be a concatenation.

An *atom* is an axis (docs/architecture.md). Two atoms are merged (`unify`) when two dims must have the same size and
the same order of units. Atoms are refined on demand: a reshape cuts an atom into a product, and a slice or a
concatenation cuts it into segments. Every dim that holds the atom sees the cut. The cost is near-linear in the number
of ops (union-find); channel indices are never listed.

*Extents* are atoms of batch, token and spatial dims. They take part in reshapes, but two layouts of an extent that
cannot be aligned pin nothing: windows may cut 28 into 4*7 and into 14*2, because width growth never changes extents.
"""

from __future__ import annotations

import contextvars
import itertools
import math
from collections.abc import Mapping, Sequence

from progc.ir.graphs import reshape_groups

Dim = tuple["Atom", ...]
"""Product of atoms, outermost first; the empty product is a dim of size 1."""

OUTPUT = "it is an output of the network"
POSITIONS = "batch, token or spatial positions, or input features"
KERNEL = "kernel size of a convolution"
"""Reasons for pins that other modules compare with."""

_ids = itertools.count()

Place = tuple[str, str]
"""A place in a program: the graph (`train` or `eval`) and the name of the node."""

here: contextvars.ContextVar[Place | None] = contextvars.ContextVar("here", default=None)
"""The node whose rule is running. The walk sets it, so that every pin records where it comes from."""


class Atom:
    """One axis. A refined atom holds the factors or segments that replaced it.

    Attributes:
        size: number of units at the captured size.
        extent: True for batch, token and spatial dims.
        reasons: why it may not grow, each with the place where the reason was first stated. Empty if it may grow.
    """

    __slots__ = ("extent", "factors", "id", "reasons", "segments", "size")

    def __init__(self, size: int, extent: bool = False) -> None:
        self.id = next(_ids)
        self.size = size
        self.extent = extent
        self.reasons: dict[str, Place | None] = {}
        self.factors: Dim | None = None
        self.segments: list[Dim] | None = None

    def __repr__(self) -> str:
        return f"{'x' if self.extent else 'a'}{self.id}:{self.size}"


class Clash(Exception):
    """Two layouts of one dim cannot be aligned."""


def new(size: int, extent: bool = False) -> Dim:
    """Returns a dim of one new atom, or the empty product for size 1."""
    return () if size == 1 else (Atom(size, extent),)


def size_of(dim: Dim) -> int:
    """Returns the captured size of a dim."""
    return math.prod(atom.size for atom in dim)


def resized(dim: Dim, new: Mapping[Atom, int]) -> int:
    """Returns the size of a dim after the atoms in `new` are resized."""
    total = 1
    for atom in resolve(dim):
        if atom.segments is not None:
            total *= sum(resized(segment, new) for segment in atom.segments)
        else:
            total *= new.get(atom, atom.size)
    return total


def resolve(dim: Dim) -> Dim:
    """Returns the normal form: refined atoms are replaced by their factors, and factors of size 1 are dropped."""
    if all(atom.factors is None and atom.size != 1 for atom in dim):
        return dim
    out: list[Atom] = []
    for atom in dim:
        if atom.factors is not None:
            atom.factors = resolve(atom.factors)
            out.extend(atom.factors)
        elif atom.size != 1:
            out.append(atom)
    return tuple(out)


def leaves(dim: Dim) -> list[Atom]:
    """Returns all atoms of a dim that are not refined any further, including those of segments."""
    found: list[Atom] = []
    for atom in resolve(dim):
        if atom.segments is None:
            found.append(atom)
        else:
            for segment in atom.segments:
                found.extend(leaves(segment))
    return found


def channels(dim: Dim) -> Dim:
    """Returns the leaves of a dim that are not extents."""
    return tuple(atom for atom in leaves(dim) if not atom.extent)


def pin(dim: Dim, reason: str, place: Place | None = None) -> None:
    """Forbids growth of all atoms in `dim`. The default `place` is the node whose rule is running."""
    for atom in leaves(dim):
        atom.reasons.setdefault(reason, place or here.get())


def refine(atom: Atom, sizes: Sequence[int]) -> Dim:
    """Replaces a leaf atom by a product of new atoms of the given sizes."""
    parts = tuple(Atom(size, atom.extent) for size in sizes)
    for part in parts:
        part.reasons.update(atom.reasons)
    atom.factors = parts
    return parts


def concat(dims: Sequence[Dim]) -> Dim:
    """Returns the dim of a concatenation."""
    parts: list[Dim] = []
    for dim in (resolve(d) for d in dims):
        if len(dim) == 1 and dim[0].segments is not None:
            parts.extend(dim[0].segments)
        else:
            parts.append(dim)
    if len(parts) == 1:
        return parts[0]
    total = sum(size_of(part) for part in parts)
    if all(atom.extent for part in parts for atom in leaves(part)):
        return new(total, extent=True)
    atom = Atom(total)
    atom.segments = parts
    return (atom,)


def unify(a: Dim, b: Dim) -> None:
    """States that two dims of equal size have the same units in the same order.

    Raises:
        Clash: their factors cannot be aligned.
    """
    while True:
        a, b = resolve(a), resolve(b)
        # Skip the factors that agree; refine the first that differ, then resolve both dims again.
        position = 0
        while position < min(len(a), len(b)) and a[position] is b[position]:
            position += 1
        a, b = a[position:], b[position:]
        if not a or not b:
            if size_of(a) != size_of(b):
                raise Clash("sizes differ")
            return
        x, y = a[0], b[0]
        if x.size == y.size:
            _merge(x, y)
        elif x.size > y.size:
            _cut(x, y.size, a)
        else:
            _cut(y, x.size, b)


def _cut(atom: Atom, outer: int, dim: Dim) -> None:
    """Refines `atom` so that its outermost factor has `outer` units (or a common divisor of it)."""
    if atom.segments is not None:
        _factor_segments(atom, outer)
        return
    common = math.gcd(atom.size, outer)
    if common == 1 or atom.size % common:
        raise Clash(f"{outer} does not divide {atom.size}" if len(dim) else "")
    refine(atom, (common, atom.size // common))


def _factor_segments(atom: Atom, outer: int) -> None:
    """Rewrites a concatenation as a product: `[o1*i, o2*i, ...] = [o1, o2, ...] * i` with `outer` = sum of o."""
    assert atom.segments is not None
    if atom.size % outer:
        raise Clash(f"{outer} does not divide {atom.size}")
    inner = atom.size // outer
    if any(size_of(segment) % inner for segment in atom.segments):
        raise Clash(f"the parts of {atom.size} are not multiples of {inner}")
    common: Dim = new(inner)
    outers: list[Dim] = []
    for segment in list(atom.segments):
        count = size_of(segment) // inner
        head = new(count)
        unify(segment, head + common)
        outers.append(head)
    head = concat(outers) if outer > 1 else ()
    if all(size_of(o) == 1 for o in outers):
        # k equal parts: the outer factor only numbers the parts (q, k, v) and never grows.
        fixed = Atom(outer)
        fixed.reasons["selected by position"] = here.get()
        head = (fixed,)
    atom.segments = None
    atom.factors = head + common


def _merge(x: Atom, y: Atom) -> None:
    """Merges `x` and `y`, which have equal sizes: one becomes an alias of the other."""
    if x.segments is not None and y.segments is not None:
        _align(x, y)
    elif x.segments is not None:
        x, y = y, x  # the leaf becomes the alias, the concatenation stays
    _as_extent(x, y)
    for reason, place in x.reasons.items():
        pin((y,), reason, place)
    x.segments = None
    x.factors = (y,)


def _as_extent(x: Atom, y: Atom) -> None:
    if x.extent == y.extent:
        return
    for atom in leaves((x, y)):
        if not atom.extent:
            atom.extent = True
            atom.reasons.setdefault(POSITIONS, here.get())


def _align(x: Atom, y: Atom) -> None:
    assert x.segments is not None and y.segments is not None
    cuts = sorted(set(_boundaries(x.segments)) | set(_boundaries(y.segments)))
    x.segments, y.segments = _recut(x.segments, cuts), _recut(y.segments, cuts)
    for left, right in zip(x.segments, y.segments, strict=True):
        unify(left, right)


def _boundaries(segments: Sequence[Dim]) -> list[int]:
    return list(itertools.accumulate(size_of(segment) for segment in segments))


def _recut(segments: Sequence[Dim], cuts: Sequence[int]) -> list[Dim]:
    out: list[Dim] = []
    position = 0
    for segment in segments:
        start, position = position, position + size_of(segment)
        inside = [cut - start for cut in cuts if start < cut < position]
        out.extend(split(segment, inside))
    return out


def split(dim: Dim, cuts: Sequence[int]) -> list[Dim]:
    """Cuts a dim at the given offsets into segments.

    Raises:
        Clash: a cut falls inside a unit of the outermost factor.
    """
    dim = resolve(dim)
    if not cuts:
        return [dim]
    if not dim:
        raise Clash("cannot split a dim of size 1")
    outer, inner = dim[0], dim[1:]
    step = size_of(inner)
    if any(cut % step for cut in cuts):
        if outer.segments is not None or len(dim) == 1:
            raise Clash(f"the cut falls inside a part of {outer.size}")
        # The cut falls inside a unit of the outermost factor.
        raise Clash(f"the cut at {cuts} falls inside one of {outer.size} units of {step}")
    places = [cut // step for cut in cuts]
    if outer.segments is None:
        bounds = [0, *places, outer.size]
        outer.segments = [_part(outer, stop - start) for start, stop in itertools.pairwise(bounds)]
    else:
        outer.segments = _recut(outer.segments, sorted(set(places) | set(_boundaries(outer.segments))))
    pieces: list[Dim] = []
    group: list[Dim] = []
    position = 0
    for segment in outer.segments:
        group.append(segment)
        position += size_of(segment)
        if position in places or position == outer.size:
            pieces.append(resolve(concat(group) + inner))
            group = []
    return pieces


def _part(atom: Atom, size: int) -> Dim:
    part = Atom(size, atom.extent)
    part.reasons.update(atom.reasons)
    return (part,)


def reshape(dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim]:
    """Returns the dims after a view: factors are assigned from left to right and cut where the new sizes require it."""
    out: list[Dim] = []
    for old, wanted in reshape_groups([size_of(dim) for dim in dims], list(sizes)):
        factors = tuple(itertools.chain.from_iterable(resolve(dims[i]) for i in old))
        targets = [sizes[j] for j in wanted]
        try:
            out.extend(_deal(factors, targets))
        except Clash:
            if any(not atom.extent for atom in leaves(factors)):
                pin(factors, f"reshaped to {targets}, which does not match its parts")
            out.extend(new(target, extent=True) for target in targets)
    return out


def _deal(factors: Dim, targets: Sequence[int]) -> list[Dim]:
    out: list[Dim] = []
    for target in targets:
        taken: list[Atom] = []
        left = target
        while left > 1:
            factors = resolve(factors)
            atom = factors[0]
            if left % atom.size == 0:
                taken.append(atom)
                left //= atom.size
                factors = factors[1:]
            elif atom.size % left == 0 or atom.segments is None:
                _cut(atom, left, factors)
            else:
                raise Clash(f"{left} does not fit {atom.size}")
        out.append(tuple(taken))
    if size_of(factors) != 1:
        raise Clash("sizes differ")
    return out
