"""The lift: exact shares, ties, what is carried over, and EMA copies."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from progc.lift.entry import Made, Scale, Split, TensorLift
from progc.lift.index_map import IndexMap
from progc.lift.lift import Lift
from progc.lift.revert import revert
from tests.strategies import index_maps, tensors

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def apply_one(tensor: torch.Tensor, entry: TensorLift, seed: int = 0, noise: float = 0.3) -> torch.Tensor:
    return Lift((entry,), seed=seed, noise=noise).apply({entry.source: tensor})[entry.name]


def folded(grown: torch.Tensor, index_map: IndexMap, dim: int) -> torch.Tensor:
    """The sum over the copies of every old unit along `dim`, rounded to the dtype once; fresh units are left out."""
    old = (~index_map.fresh()).nonzero().flatten()
    shape = list(grown.shape)
    shape[dim] = index_map.old
    total, error = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    wide = grown.double()
    for unit in old.tolist():  # Neumaier's sum: exact here, also for f64
        value, at = wide.select(dim, unit), int(index_map.index()[unit])
        before = total.select(dim, at).clone()
        after = before + value
        error.select(dim, at).add_(
            torch.where(before.abs() >= value.abs(), (before - after) + value, (value - after) + before)
        )
        total.select(dim, at).copy_(after)
    return (total + error).to(grown.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_shares_add_up_to_the_weight_to_the_bit(dtype: torch.dtype, data: st.DataObject) -> None:
    """D E = I: summing the copies gives the old weights back, whatever the weights (docs/growth.md 0.1)."""
    index_map = data.draw(index_maps())
    rows = data.draw(st.integers(1, 3))
    weight = data.draw(tensors((rows, index_map.old), dtype))
    noise = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    grown = apply_one(weight, TensorLift("w", "w", (None, index_map), (Split(1),)), noise=noise)
    assert grown.shape == (rows, index_map.new) and grown.dtype == dtype and bool(grown.isfinite().all())
    assert torch.equal(folded(grown, index_map, 1), weight)
    # Old rows must not read fresh units.
    assert not grown[:, index_map.fresh()].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_gather_then_fold_on_both_dims(dtype: torch.dtype, data: st.DataObject) -> None:
    """A tensor that is producer and consumer: the shares of every row add up by themselves."""
    rows, columns = data.draw(index_maps("copy")), data.draw(index_maps("copy"))
    weight = data.draw(tensors((rows.old, columns.old), dtype))
    grown = apply_one(weight, TensorLift("w", "w", (rows, columns), (Split(1),)))
    assert torch.equal(folded(grown, columns, 1), weight[rows.index()])


@given(data=st.data())
def test_two_contracted_dims(data: st.DataObject) -> None:
    """An output projection [heads, head dim, width] contracts two dims; sums over both are the weight to f64's bits."""
    first, second = data.draw(index_maps("copy")), data.draw(index_maps("copy"))
    weight = data.draw(tensors((first.old, second.old), torch.float32))
    grown = apply_one(weight, TensorLift("w", "w", (first, second), (Split(0), Split(1))))
    half = folded(grown, second, 1)
    assert torch.equal(folded(half, first, 0), weight)


def test_partial_splits_divide_only_what_they_say() -> None:
    """Of [parts x heads x head dim] only the queries are divided, and only among copies of the head dim."""
    heads, head_dim = IndexMap.leaf(2, 4), IndexMap.leaf(3, 6)
    packed = IndexMap.product((IndexMap.leaf(2, 2), heads, head_dim))
    over = IndexMap.product((IndexMap.leaf(2, 2), IndexMap.leaf(4, 4), head_dim))
    flags = tuple(unit < 6 for unit in range(12))
    weight = torch.randn(12, 5)
    grown = apply_one(weight, TensorLift("w", "w", (packed, None), (Split(0, flags, over),)))
    keys = grown.view(2, 4, 6, 5)[1]
    assert torch.equal(keys, weight.view(2, 2, 3, 5)[1][heads.index()][:, head_dim.index()])
    queries = grown.view(2, 4, 6, 5)[0].view(4, 3, 2, 5)
    assert torch.equal(queries.double().sum(2).float(), weight.view(2, 2, 3, 5)[0][heads.index()])
    assert (queries[:, :, 0] != queries[:, :, 1]).all()


def test_shares_are_noisy_per_row_and_equal_without_noise() -> None:
    entry = TensorLift("w", "w", (None, IndexMap.leaf(8, 24)), (Split(1),))
    weight = torch.randn(64, 8)
    share = apply_one(weight, entry).view(64, 8, 3) / weight[:, :, None]
    assert 0.2 < float((share * 3).std()) < 0.3  # 0.3 * sqrt(2 / 3)
    assert float(share.std(0).min()) > 0.05  # rows differ: Adam would divide a common factor away
    equal = apply_one(weight, entry, noise=0.0)
    torch.testing.assert_close(equal, weight.repeat_interleave(3, 1) / 3, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("copies", [2, 3])
def test_shares_add_up_however_large_the_noise(dtype: torch.dtype, copies: int) -> None:
    """No share is larger than its weight: it would need a bit more than the dtype has."""
    weight, index_map = torch.randn(8, 16).to(dtype), IndexMap.leaf(16, 16 * copies)
    grown = apply_one(weight, TensorLift("w", "w", (None, index_map), (Split(1),)), noise=5.0)
    assert torch.equal(folded(grown, index_map, 1), weight)
    assert (grown.abs() <= weight.abs().repeat_interleave(copies, 1)).all()


@pytest.mark.parametrize("summed", [0, 1])
def test_copies_of_an_output_get_shares_of_their_own(summed: int) -> None:
    """Copies with equal shares would get equal gradients and never part."""
    weight, dims = torch.randn(4, 3), (IndexMap.leaf(4, 8), IndexMap.leaf(3, 6))
    grown, equal = (
        apply_one(weight, TensorLift("w", "w", dims, (Split(summed),)), noise=noise).movedim(summed, 1)
        for noise in (0.3, 0.0)
    )
    assert (grown[::2] != grown[1::2]).all()
    assert torch.equal(equal[::2], equal[1::2])


def test_zero_weights_get_shares_around_zero() -> None:
    """The copies of a silenced branch would never part otherwise."""
    weight = torch.randn(6, 4)
    weight[:2] = 0
    grown = apply_one(weight, TensorLift("w", "w", (None, IndexMap.leaf(4, 8)), (Split(1),)))
    assert (grown[:2] != 0).all() and torch.equal(grown[:2].view(2, 4, 2).sum(2), weight[:2])
    silent = apply_one(weight, TensorLift("w", "w", (None, IndexMap.leaf(4, 8)), (Split(1),)), noise=0.0)
    assert not silent[:2].any()


def test_weights_that_are_not_finite_stay_so() -> None:
    weight = torch.tensor([[float("inf"), float("nan"), 1.0]])
    grown = apply_one(weight, TensorLift("w", "w", (None, IndexMap.leaf(3, 6)), (Split(1),)))
    assert grown[0, :2].isinf().all() and grown[0, 2:4].isnan().all() and grown[0, 4:].sum() == 1


def test_what_is_not_mentioned_is_the_same_object() -> None:
    given_ = {"a": nn.Parameter(torch.randn(3)), "b": torch.arange(4), "gone": torch.randn(2), "same": torch.randn(2)}
    lift = Lift((TensorLift("new", "gone"), TensorLift("same", "same", (None,))), removed=frozenset({"gone"}))
    grown = lift.apply(given_)
    assert grown.keys() == {"a", "b", "new", "same"}
    assert grown["a"] is given_["a"] and grown["b"] is given_["b"]
    assert grown["new"] is given_["gone"] and grown["same"] is given_["same"]  # renamed, not changed


def test_nothing_that_changes_shares_memory_with_its_source() -> None:
    weight = torch.randn(4)
    for entry in (TensorLift("w", "w", fresh=True), TensorLift("w", "w", (), (), (Scale(0, (1.0,) * 4),))):
        grown = apply_one(weight, entry)
        assert torch.equal(grown, weight) and grown.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("views", [False, True], ids=["one object", "views as state_dict gives them"])
def test_tied_tensors_stay_tied(views: bool) -> None:
    shared = nn.Parameter(torch.randn(5, 3))
    dims = (None, IndexMap.leaf(3, 6))
    lift = Lift((TensorLift("embed", "embed", dims, (Split(1),)), TensorLift("head", "head", dims, (Split(1),))))
    pair = {"embed": shared.detach(), "head": shared.detach()} if views else {"embed": shared, "head": shared}
    grown = lift.apply(pair)
    assert grown["embed"] is grown["head"] and isinstance(grown["head"], nn.Parameter) != views
    apart = lift.apply({"embed": shared, "head": nn.Parameter(shared.detach().clone())})
    assert apart["embed"] is not apart["head"]


def some_lift(seed: int = 3) -> Lift:
    return Lift(
        (
            TensorLift("w", "w", (IndexMap.leaf(4, 8), IndexMap.leaf(3, 7)), (Split(1),)),
            TensorLift("v", "v", (IndexMap.leaf(3, 6, "free"),), (), (Scale(0, (1.0, 0.0, 2.0)),)),
            TensorLift("copy", "w", (IndexMap.leaf(4, 8), None), (Split(0, (True, False, True, True)),), fresh=True),
            TensorLift("free", "w", (IndexMap.leaf(4, 9, "free"), IndexMap.leaf(3, 5, "free")), (Split(1),)),
            TensorLift("drawn", "w", init="random", fresh=True),
            TensorLift("one", "v", fill=1.0, fresh=True),
        ),
        seed,
        removed=frozenset({"gone"}),
    )


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("w", (4, 3)), ("v", 3), ("gone", 1))}


def test_results_do_not_depend_on_order_or_earlier_draws() -> None:
    lift, given_ = some_lift(), some_tensors()
    expected = lift.apply(given_)
    torch.randn(7)  # the global generator plays no part
    backwards = Lift(tuple(reversed(lift.tensors)), lift.seed, lift.noise, lift.removed)
    for other in (lift.apply(dict(reversed(given_.items()))), backwards.apply(given_)):
        assert other.keys() == expected.keys()
        assert all(torch.equal(other[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(some_lift(seed=4).apply(given_)["w"], expected["w"])


def test_json_round_trip() -> None:
    lift, given_ = some_lift(), some_tensors()
    again = Lift.from_json(json.loads(json.dumps(lift.to_json())))
    assert again == lift
    assert all(torch.equal(again.apply(given_)[name], tensor) for name, tensor in lift.apply(given_).items())


@given(index_maps(), st.booleans())
def test_json_round_trip_of_any_map(index_map: IndexMap, partial: bool) -> None:
    where = tuple(unit % 2 == 0 for unit in range(index_map.old)) if partial else None
    split = Split(0, where, index_map if partial else None)
    lift = Lift((TensorLift("w", "v", (index_map, None), (split,)),))
    assert Lift.from_json(json.loads(json.dumps(lift.to_json()))) == lift


def test_integer_buffers_are_gathered_not_divided() -> None:
    dims = (IndexMap.leaf(3, 6),)
    grown = apply_one(torch.tensor([3, 5, 7]), TensorLift("index", "index", dims, (Split(0),)))
    assert grown.tolist() == [3, 3, 5, 5, 7, 7] and grown.dtype == torch.int64
    assert apply_one(torch.tensor([True, False, True]), TensorLift("m", "m", dims)).tolist() == [1, 1, 0, 0, 1, 1]


def test_growing_an_average_is_averaging_the_grown() -> None:
    """Without noise the lift is linear; with noise the average of the weights still grows without changing it."""
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    entry = TensorLift("w", "w", (IndexMap.leaf(4, 8), IndexMap.leaf(3, 7)), (Split(1),), (Scale(0, (2.0,) * 4),))
    average = 0.9 * first + 0.1 * second
    linear = [apply_one(weight, entry, noise=0.0) for weight in (first, second, average)]
    torch.testing.assert_close(0.9 * linear[0] + 0.1 * linear[1], linear[2])
    noisy = [apply_one(weight, entry) for weight in (first, second, average)]
    # The same seed gives the same relative shares, so this holds with noise too, to rounding.
    torch.testing.assert_close(0.9 * noisy[0] + 0.1 * noisy[1], noisy[2])


def test_scalar_gates_and_fills() -> None:
    gate = nn.Parameter(torch.tensor(0.5))
    grown = apply_one(gate, TensorLift("g", "g", (), (), (Scale(0, (0.0,)),), fresh=True))
    assert grown.shape == () and grown == 0 and isinstance(grown, nn.Parameter)
    assert apply_one(torch.randn(3), TensorLift("n", "n", fill=1.0)).tolist() == [1, 1, 1]


def test_random_rows_of_a_wider_fan_in_are_drawn_with_the_root_of_the_ratio() -> None:
    """A sum over 12 instead of 3 units then varies as much as before."""
    weight, dims = torch.randn(4, 3), (IndexMap.leaf(4, 6, "free"), IndexMap.leaf(3, 12, "free"))
    plain, summed = (apply_one(weight, TensorLift("w", "w", dims, splits)) for splits in ((), (Split(1),)))
    assert plain[4:].all() and torch.equal(summed[4:], 0.5 * plain[4:])


def test_frozen_parameters_stay_frozen() -> None:
    frozen = nn.Parameter(torch.randn(3), requires_grad=False)
    grown = apply_one(frozen, TensorLift("w", "w", (IndexMap.leaf(3, 6),)))
    assert isinstance(grown, nn.Parameter) and not grown.requires_grad


def test_a_tensor_without_a_predecessor_is_made_the_same_every_time() -> None:
    lift = Lift((), seed=5, made=(Made("table", (3, 4)), Made("noise", (200, 50), std=0.02)))
    again = Lift.from_json(json.loads(json.dumps(lift.to_json())))
    assert again == lift
    old = {"weight": torch.ones(2)}
    grown, twin = lift.apply(old), again.apply(old)
    assert isinstance(grown["table"], torch.nn.Parameter) and not grown["table"].any()
    assert torch.equal(grown["noise"], twin["noise"]) and abs(float(grown["noise"].detach().std()) - 0.02) < 1e-3
    assert revert(lift, grown) == old
