"""Index maps: nested products and concatenations of axes."""

from __future__ import annotations

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from progc.lift.index_map import IndexMap
from tests.strategies import index_maps, leaves


@given(index_maps())
def test_every_unit_has_a_source(index_map: IndexMap) -> None:
    index, fresh = index_map.index(), index_map.fresh()
    assert index.shape == fresh.shape == (index_map.new,)
    assert index.dtype == torch.int64 and fresh.dtype == torch.bool
    assert 0 <= int(index.min()) and int(index.max()) < index_map.old
    assert set(index[~fresh].tolist()) == set(range(index_map.old))  # no old unit is lost
    assert index_map.unchanged == (index.tolist() == list(range(index_map.old)) and not bool(fresh.any()))


@given(index_maps())
def test_counts_are_the_number_of_copies(index_map: IndexMap) -> None:
    index, fresh, counts = index_map.index().tolist(), index_map.fresh().tolist(), index_map.counts().tolist()
    copies = [source for source, new in zip(index, fresh, strict=True) if not new]
    for source, new, count in zip(index, fresh, counts, strict=True):
        assert count == (1 if new else copies.count(source))
    assert index_map.uniform == (not any(fresh) and len(set(counts)) == 1)
    # Shares of 1 / count add up to one for every old unit: the drop map undoes the gather.
    shares = torch.zeros(index_map.old, dtype=torch.float64)
    shares.index_add_(0, index_map.index(), torch.where(index_map.fresh(), 0.0, 1.0 / index_map.counts().double()))
    torch.testing.assert_close(shares, torch.ones_like(shares))


@given(index_maps())
def test_json_round_trip(index_map: IndexMap) -> None:
    again = IndexMap.from_json(json.loads(json.dumps(index_map.to_json())))
    assert again == index_map
    assert torch.equal(again.index(), index_map.index()) and torch.equal(again.fresh(), index_map.fresh())


@given(st.lists(index_maps(), min_size=1, max_size=3))
def test_products_are_kronecker_products(parts: list[IndexMap]) -> None:
    """Gathering a dim that is a product gathers each of its factors (docs/growth.md 0.2)."""
    product = IndexMap.product(tuple(parts))
    value = torch.arange(product.old).reshape([part.old for part in parts])
    for dim, part in enumerate(parts):
        value = value.index_select(dim, part.index())
    assert torch.equal(value.reshape(-1), product.index())
    new = torch.zeros([part.new for part in parts], dtype=torch.bool)
    for dim, part in enumerate(parts):
        new |= part.fresh().reshape([-1 if i == dim else 1 for i in range(len(parts))])
    assert torch.equal(new.reshape(-1), product.fresh())


@given(st.lists(index_maps(), min_size=1, max_size=3))
def test_concatenations_grow_segment_by_segment(parts: list[IndexMap]) -> None:
    whole = IndexMap.concat(tuple(parts))
    value = torch.arange(whole.old)
    pieces = [piece[part.index()] for piece, part in zip(value.split([p.old for p in parts]), parts, strict=True)]
    assert torch.equal(torch.cat(pieces), whole.index())
    assert torch.equal(torch.cat([part.fresh() for part in parts]), whole.fresh())


@given(leaves())
def test_copies_stand_beside_their_source(leaf: IndexMap) -> None:
    """So that contiguous groups stay contiguous groups; new functions of the input stand behind the old ones."""
    index = leaf.index().tolist()
    if leaf.how == "copy":
        assert index == sorted(index)
        assert max(leaf.counts().tolist()) - min(leaf.counts().tolist()) <= 1
    else:
        assert index[: leaf.old] == list(range(leaf.old))
        assert leaf.fresh().tolist() == [unit >= leaf.old for unit in range(leaf.new)]


def test_a_new_segment_takes_its_values_from_an_absolute_position() -> None:
    segment = IndexMap.leaf(0, 2, "free", like=3)
    whole = IndexMap.concat((IndexMap.leaf(5, 5), segment, IndexMap.leaf(2, 4)))
    assert (whole.old, whole.new) == (7, 11)
    assert whole.index().tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 5, 6, 6]
    assert whole.fresh().tolist() == [False] * 5 + [True] * 2 + [False] * 4
    assert IndexMap.from_json(whole.to_json()) == whole


def test_packed_queries_keys_values() -> None:
    """3 parts x 2 heads x 1 unit, heads 2 -> 4: whole heads repeat within every part, nothing is appended."""
    packed = IndexMap.product((IndexMap.leaf(3, 3), IndexMap.leaf(2, 4), IndexMap.leaf(2, 2)))
    assert packed.index().tolist() == [
        0, 1, 0, 1, 2, 3, 2, 3,
        4, 5, 4, 5, 6, 7, 6, 7,
        8, 9, 8, 9, 10, 11, 10, 11,
    ]  # fmt: skip


def test_what_does_not_change_is_merged() -> None:
    plain = IndexMap.product((IndexMap.leaf(2, 2), IndexMap.leaf(3, 3)))
    assert plain == IndexMap.leaf(6, 6) and plain.unchanged
    assert IndexMap.concat((IndexMap.leaf(2, 2), IndexMap.leaf(3, 3))) == IndexMap.leaf(5, 5)
    assert IndexMap.product((IndexMap.leaf(2, 4),)) == IndexMap.leaf(2, 4)
