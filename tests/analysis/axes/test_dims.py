"""Factored dims: sizes are kept, and growing by the symbolic index map is the same as moving grown units."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.lift.index_map import IndexMap

FACTORS = (1, 2, 3, 4, 6, 8, 12)


def grown_map(dim: Dim, new: dict[Atom, int]) -> IndexMap:
    """The index map of a dim whose atoms get new sizes."""
    parts = []
    for atom in D.resolve(dim):
        if atom.segments is not None:
            parts.append(IndexMap.concat(tuple(grown_map(segment, new) for segment in atom.segments)))
        else:
            parts.append(IndexMap.leaf(atom.size, new.get(atom, atom.size)))
    return IndexMap.product(tuple(parts)) if parts else IndexMap.leaf(1, 1)


def grown(ids: torch.Tensor, dims: list[Dim], new: dict[Atom, int]) -> torch.Tensor:
    for position, dim in enumerate(dims):
        ids = ids.index_select(position, grown_map(dim, new).index())
    return ids


def sizes_of(dims: list[Dim]) -> list[int]:
    return [D.size_of(dim) for dim in dims]


@st.composite
def products(draw: st.DrawFn, total: int = 24) -> Dim:
    """A dim of `total` units, cut into a random product."""
    sizes, left = [], total
    while left > 1:
        size = draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0]))
        sizes.append(size)
        left //= size
    return sum((D.new(size) for size in sizes), ())


@given(products(), products())
def test_unify_is_symmetric_idempotent_and_keeps_sizes(a: Dim, b: Dim) -> None:
    try:
        D.unify(a, b)
    except D.Clash:
        return
    assert D.size_of(a) == D.size_of(b) == 24
    assert D.resolve(a) == D.resolve(b)
    before = D.resolve(a)
    D.unify(b, a)
    D.unify(a, a)
    assert D.resolve(a) == D.resolve(b) == before


@given(products(), products())
def test_unify_clashes_in_both_directions(a: Dim, b: Dim) -> None:
    def clashes(first: list[int], second: list[int]) -> bool:
        try:
            D.unify(sum(map(D.new, first), ()), sum(map(D.new, second), ()))
        except D.Clash:
            return True
        return False

    left, right = [atom.size for atom in a], [atom.size for atom in b]
    assert clashes(left, right) == clashes(right, left)


def test_units_that_cannot_be_aligned_clash() -> None:
    with pytest.raises(D.Clash, match="does not divide"):
        D.unify(D.new(2) + D.new(3), D.new(3) + D.new(2))
    with pytest.raises(D.Clash):
        D.unify(D.new(4), D.new(6))


@given(products(), st.lists(st.integers(1, 23), max_size=4, unique=True))
def test_split_parts_add_up_and_concatenate_to_the_whole(dim: Dim, cuts: list[int]) -> None:
    cuts.sort()
    try:
        parts = D.split(dim, cuts)
    except D.Clash:
        assert D.size_of(dim) == 24
        return
    assert list(itertools.accumulate(sizes_of(parts))) == [*cuts, 24]
    whole = D.concat(parts)
    D.unify(whole, dim)
    assert [a.id for a in D.leaves(whole)] == [a.id for a in D.leaves(dim)]


@given(products(), products())
def test_reshape_keeps_the_number_of_units(a: Dim, b: Dim) -> None:
    wanted = [atom.size for atom in b]
    out = D.reshape([a, D.new(5)], [*wanted, 5])
    assert sizes_of(out) == [*wanted, 5]
    back = D.reshape(out, [24, 5])
    assert sizes_of(back) == [24, 5]


@given(products(), st.integers(1, 23))
def test_reasons_reach_every_part_made_later(dim: Dim, cut: int) -> None:
    D.pin(dim, "because")
    for atom in D.resolve(dim):
        D.unify((atom,), D.new(atom.size))
    try:
        parts = D.split(dim, [cut])
    except D.Clash:
        return
    assert all(atom.reasons for part in parts for atom in D.leaves(part) if atom.size > 1)


def test_extents_and_channels_that_meet_are_pinned() -> None:
    channels, extent = D.new(6), D.new(6, extent=True)
    D.unify(channels, extent)
    assert D.channels(channels) == () and D.leaves(channels)[0].reasons


@st.composite
def programs(draw: st.DrawFn) -> tuple[torch.Tensor, list[Dim], list[tuple[str, object]]]:
    shape = [draw(st.sampled_from(FACTORS[1:])) for _ in range(draw(st.integers(1, 3)))]
    ids = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return ids, [D.new(size) for size in shape], []


@given(st.data())
def test_moving_grown_units_is_growing_moved_units(data: st.DataObject) -> None:
    """A random chain of view, permute, cat and split; every step is replayed on the grown tensor."""
    start, start_dims, _ = data.draw(programs())
    value, dims = start, list(start_dims)
    steps: list[tuple[str, object, list[Dim]]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["view", "merge", "permute", "cat", "split", "chunk"]))
        axis = data.draw(st.integers(0, value.dim() - 1))
        size = value.shape[axis]
        if kind == "view":
            inner = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
            shape = [*value.shape[:axis], size // inner, inner, *value.shape[axis + 1 :]]
            out = D.reshape(dims, shape)
            value, dims = value.reshape(shape), out
            steps.append(("view", None, out))
        elif kind == "merge" and value.dim() > 1 and axis + 1 < value.dim():
            shape = [*value.shape[:axis], size * value.shape[axis + 1], *value.shape[axis + 2 :]]
            out = D.reshape(dims, shape)
            value, dims = value.reshape(shape), out
            steps.append(("view", None, out))
        elif kind == "permute":
            order = data.draw(st.permutations(range(value.dim())))
            value, dims = value.permute(order), [dims[i] for i in order]
            steps.append(("permute", order, dims))
        elif kind == "cat" and value.numel() < 2000:
            value = torch.cat([value, value], axis)
            dims = [D.concat([d, d]) if i == axis else d for i, d in enumerate(dims)]
            steps.append(("cat", axis, dims))
        elif kind in ("split", "chunk") and size > 1:
            cut = size // 2 if kind == "chunk" else data.draw(st.integers(1, size - 1))
            try:
                parts = D.split(dims[axis], [cut])
            except D.Clash:
                D.pin(dims[axis], "cut")
                continue
            value = value.narrow(axis, 0, cut)
            dims = [parts[0] if i == axis else d for i, d in enumerate(dims)]
            steps.append(("split", axis, dims))
    assert sizes_of(dims) == list(value.shape)
    atoms = dict.fromkeys(atom for dim in start_dims for atom in D.leaves(dim) if not atom.reasons)
    new = {atom: atom.size * data.draw(st.integers(1, 2)) + data.draw(st.integers(0, 1)) for atom in atoms}
    moved = grown(start, start_dims, new)
    for kind, detail, result in steps:
        shape = [grown_map(dim, new).new for dim in result]
        if kind == "view":
            moved = moved.reshape(shape)
        elif kind == "permute":
            moved = moved.permute(detail)  # type: ignore[arg-type]
        elif kind == "cat":
            moved = torch.cat([moved, moved], detail)  # type: ignore[arg-type]
        else:
            moved = moved.narrow(detail, 0, shape[detail])  # type: ignore[call-overload,index]
    assert torch.equal(moved, grown(value, dims, new))
