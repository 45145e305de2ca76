"""Which blocks stay and where growth puts them back: the index map of AutoProg, and its inverse."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import PassOptionError
from progc.lift.index_map import IndexMap
from progc.lift.lift import strides
from progc.transforms.depth.naming import arranged, interpolated
from progc.transforms.depth.targets import parse_depth
from progc.transforms.shrinking.removal import kept_positions
from tests.strategies import index_maps


def published(p: int, n: int) -> list[int]:
    """The published expression for a chain that grows from p to n layers (AutoProg, Li et al., CVPR 2022)."""
    q, rem = divmod(n, p)
    return [i * p // (q * p) if i * p // (q * p) < p - rem else (i + p - rem) * p // (q * p + p) for i in range(n)]


def test_the_map_is_the_published_one() -> None:
    """Old layers 0 .. p - rem - 1 occur q times, the others q + 1 times; for all p < 40, n <= 4p."""
    for p in range(1, 40):
        for n in range(p, 4 * p + 1):
            assert interpolated(p, n) == published(p, n), (p, n)
    assert interpolated(9, 12) == [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]
    assert interpolated(4, 10) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]


def test_new_layers_are_the_second_and_later_copies() -> None:
    for p in range(1, 40):
        for n in range(p, 4 * p + 1):
            sources = published(p, n)
            again = [i for i in range(1, n) if sources[i] == sources[i - 1]]
            assert [i for i, place in enumerate(arranged(p, n, 1, "interpolate")) if place.copy] == again
    assert [i for i, place in enumerate(arranged(9, 12, 1, "identity")) if place.copy] == [7, 9, 11]


def test_growing_back_puts_every_kept_layer_where_it_was() -> None:
    for n in range(1, 40):
        for p in range(1, n + 1):
            kept = kept_positions(n, p, "spread")
            assert kept == [i for i, place in enumerate(arranged(p, n, 1, "interpolate")) if not place.copy]
            assert [published(p, n)[place] for place in kept] == list(range(p))
    assert kept_positions(6, 2, "first") == [0, 1] and kept_positions(6, 2, "last") == [4, 5]
    assert all(kept_positions(6, 0, rule) == [] for rule in ("spread", "first", "last"))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "2.0x", "", "*2", "1.5", "blocks:", "-1", "*0"])
def test_what_is_no_depth(text: str) -> None:
    with pytest.raises(PassOptionError, match="expected a number of blocks"):
        parse_depth(text, shrink=True)


# --- units of axes --------------------------------------------------------------------------------------------------


def undone(index_map: IndexMap) -> IndexMap:
    """The selection that undoes a growth: the same plan, backwards."""
    if index_map.kind == "leaf":
        how = "leading" if index_map.how == "free" else "spread"
        return IndexMap.leaf(index_map.new, index_map.old, how)  # type: ignore[arg-type]
    parts = tuple(undone(part) for part in index_map.parts)
    return IndexMap.product(parts) if index_map.kind == "product" else IndexMap.concat(parts)


@given(index_maps())
def test_shrinking_and_growing_by_one_plan_is_the_identity_on_indices(growth: IndexMap) -> None:
    selection = undone(growth)
    assert (selection.old, selection.new) == (growth.new, growth.old)
    assert torch.equal(growth.index()[selection.index()], torch.arange(growth.old))
    # And each kept unit is the first that stands for it, itself and no copy.
    assert not bool(growth.fresh()[selection.index()].any())
    for unit, place in enumerate(selection.index().tolist()):
        own = [i for i, (source, new) in enumerate(zip(growth.index().tolist(), growth.fresh().tolist(), strict=True))
               if source == unit and not new]  # fmt: skip
        assert place == own[0]
    again = IndexMap.from_json(json.loads(json.dumps(selection.to_json())))
    assert again == selection and selection.uniform


@given(st.integers(1, 60), st.data())
def test_whole_factors_and_leading_units_are_views(old: int, data: st.DataObject) -> None:
    new = data.draw(st.sampled_from([size for size in range(1, old + 1) if old % size == 0]))
    for how, size in (("spread", new), ("leading", data.draw(st.integers(1, old)))):
        index_map = IndexMap.leaf(old, size, how)  # type: ignore[arg-type]
        value = torch.arange(old)
        (step,) = strides((index_map,)) or (None,)
        assert step is not None or size == old
        assert torch.equal(value[step if step is not None else slice(None)], value[index_map.index()])


def test_a_product_is_a_view_where_strides_merge() -> None:
    def product(*parts: IndexMap) -> tuple[IndexMap]:
        return (IndexMap.product(parts),)

    three, four = IndexMap.leaf(3, 3), IndexMap.leaf(4, 4)
    heads = {how: IndexMap.leaf(6, 3, how) for how in ("spread", "leading")}  # type: ignore[arg-type]
    assert strides(product(heads["leading"], four)) == (slice(0, 12, 1),)
    assert strides(product(heads["spread"], four)) is None
    assert strides(product(three, heads["leading"], four)) is None
    assert strides(product(three, four, heads["spread"])) == (slice(0, 71, 2),)
    gap = IndexMap.concat((three, IndexMap.leaf(4, 0, "leading"), four))
    assert strides((gap,)) is None and gap.index().tolist() == [0, 1, 2, 7, 8, 9, 10]
