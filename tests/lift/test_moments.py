"""Optimizer moments through the lift: the gradient law against autograd, entries without a past, other optimizers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from progc.errors import InputError
from progc.growth.plan import GrowthPlan
from progc.ir.program import Program
from progc.lift.entry import Scale, Split, TensorLift
from progc.lift.index_map import IndexMap
from progc.lift.lift import Lift
from progc.lift.moments import load_state_by_name, optimizer_state_by_name
from progc.passes.grow_depth import GrowDepth
from progc.passes.grow_width import GrowWidth
from tests.gradients import gradients, in_float64
from tests.training import Run, program
from tests.zoo import captured

VIT = "timm:vit_tiny_patch16_224@64"
NETWORKS = ("own:einsum", "own:flat", "own:conv", VIT, "transformers:gpt2", "transformers:llama")


def growths(program: Program) -> Iterator[dict[str, Any]]:
    """Everything at once, by 2 and by 3 and with new units, and by what is no whole factor where that is exact."""
    growable = program.axes.growable
    for factor, init in ((2, "copy"), (3, "copy"), (2, "zero")):
        yield {"axes": tuple(f"{axis.name}:{factor * axis.size}" for axis in growable), "init": init}
    for init in ("copy", "zero"):
        yield {"axes": tuple(f"{axis.name}:{axis.size + 1}" for axis in growable if not axis.conditions), "init": init}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_follow_the_law(name: str) -> None:
    """g' = b * g for every entry with a past, by autograd on both programs in float64; hence m' and v'."""
    small = captured(name)[1]
    wide = in_float64(small.tensors)
    old = gradients(small.replace(tensors=wide))
    state = {key: {"exp_avg": grad, "exp_avg_sq": grad**2} for key, grad in old.items()}
    for options in itertools.islice(growths(small), 1 if name == VIT else None):  # that one is large
        if not options["axes"]:
            continue
        result = GrowWidth(noise=0.0, **options).run(small)
        assert result.lossless and result.lift is not None
        mapped = result.lift.moments(state)
        new = gradients(result.program.replace(tensors=result.lift.apply(wide)))
        largest = max(float(grad.abs().max()) for grad in new.values())
        entries = {entry.name: entry for entry in result.lift.tensors}
        for key, grad in new.items():
            past = torch.ones_like(grad, dtype=torch.bool)
            for dim, index_map in enumerate(entries[key].dims if key in entries else ()):
                if index_map is not None:
                    past &= ~index_map.fresh().reshape([-1 if i == dim else 1 for i in range(grad.dim())])
            # Some gradients are zero but for rounding: softmax ignores a shift of the keys.
            size = max(float(grad.abs().max()), 1e-6 * largest)
            m, v = mapped[key]["exp_avg"], mapped[key]["exp_avg_sq"]
            assert torch.where(past, m - grad, 0).abs().max() < 1e-9 * size, (options, key)
            assert torch.where(past, v - grad**2, 0).abs().max() < 1e-9 * size**2, (options, key)
            assert (m[~past] == 0).all()


@pytest.mark.parametrize("name", ["own:einsum", "own:flat"])
def test_gradients_follow_the_law_through_depth_and_width(name: str) -> None:
    """Silent new blocks leave the gradients of the old ones alone; widening then scales them."""
    small = captured(name)[1]
    deep = GrowDepth().run(small)
    wide = GrowWidth(width="*2", noise=0.0).run(deep.program)
    assert deep.lift is not None and wide.lift is not None
    plan = GrowthPlan("", (), (), {}, True, (), (), (deep.lift, wide.lift), 0)
    tensors = in_float64(small.tensors)
    old = gradients(small.replace(tensors=tensors))
    new = gradients(wide.program.replace(tensors=plan.apply(tensors)))
    mapped = plan.moments({key: {"exp_avg": grad} for key, grad in old.items()})
    inserted = {entry.name for entry in deep.lift.tensors if entry.fresh}
    assert mapped.keys() == new.keys() and inserted
    for key, grad in new.items():
        expected = torch.zeros_like(grad) if key in inserted else grad
        assert (mapped[key]["exp_avg"] - expected).abs().max() < 1e-9 * grad.abs().max().clamp(min=1e-6), key


def factors_of(lift: Lift, program: Program) -> dict[str, torch.Tensor]:
    """b of every entry: what becomes of a first moment of ones."""
    mapped = lift.moments({name: {"exp_avg": torch.ones_like(tensor)} for name, tensor in program.parameters()})
    return {name: own["exp_avg"] for name, own in mapped.items()}


def test_attention_head_dim_by_a_factor() -> None:
    """docs/growth.md 3.1: under tile r of the head dim b is 1/sqrt(r), 1/r, 1/r, 1 for q, k, v and o."""
    for factor in (2, 3):
        axes = (f"q.head_dim:{4 * factor}", f"v.head_dim:{4 * factor}")
        lift = GrowWidth(axes=axes).run(program("lm")).lift
        assert lift is not None
        found = factors_of(lift, program("lm"))
        expected = {"q": factor**-0.5, "k": 1 / factor, "v": 1 / factor, "o": 1.0}
        for name, b in expected.items():
            torch.testing.assert_close(found[f"{name}.weight"], torch.full_like(found[f"{name}.weight"], b))
        for name in "qkv":
            torch.testing.assert_close(found[f"{name}.bias"], torch.full_like(found[f"{name}.bias"], expected[name]))
        assert (found["o.bias"] == 1).all() and (found["up.weight"] == 1).all()


def test_tied_head() -> None:
    """The table's rows are shared in both of its roles; the final norm, which pays for it, is neutral."""
    lift = GrowWidth(axes=("embed:16",)).run(program("lm")).lift
    assert lift is not None
    found = factors_of(lift, program("lm"))
    assert (found["embed.weight"] == 0.5).all() and found["embed.weight"].shape == (13, 16)
    for name in ("final.weight", "final.bias", "q.weight", "up.weight", "up.bias"):
        assert (found[name] == 1).all(), name
    for name in ("norm1.weight", "norm2.bias", "o.weight", "down.weight", "down.bias"):
        assert (found[name] == 0.5).all(), name


def grow_one(entry: TensorLift, **state: Any) -> dict[str, Any]:
    return Lift((entry,)).moments({entry.source: state})[entry.name]


def test_uneven_growth_shares_by_copies() -> None:
    """3 units become 5: units 0 and 1 are copied once (i * 3 // 5), unit 2 not."""
    grown = grow_one(
        TensorLift("w", "w", (IndexMap.leaf(3, 5), IndexMap.leaf(2, 4)), (Split(1),)),
        step=torch.tensor(7.0),
        exp_avg=torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]),
        exp_avg_sq=torch.tensor([[4.0, 4.0], [8.0, 8.0], [16.0, 16.0]]),
    )
    assert IndexMap.leaf(3, 5).index().tolist() == [0, 0, 1, 1, 2]
    assert grown["exp_avg"].tolist() == [
        [0.5, 0.5, -0.5, -0.5], [0.5, 0.5, -0.5, -0.5], [1.0, 1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0],
        [3.0, 3.0, -3.0, -3.0],
    ]  # fmt: skip
    assert grown["exp_avg_sq"][:, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 16.0]
    assert grown["step"] == 7


def test_partial_splits() -> None:
    """Packed queries and keys [2 x heads x head dim]: queries share the head dim alone, keys nothing."""
    heads, head_dim = IndexMap.leaf(2, 4), IndexMap.leaf(3, 9)
    packed = IndexMap.product((IndexMap.leaf(2, 2), heads, head_dim))
    over = IndexMap.product((IndexMap.leaf(2, 2), IndexMap.leaf(4, 4), head_dim))
    queries = tuple(unit < 6 for unit in range(12))
    scale = Scale(0, tuple(3**0.5 if on else 1.0 for on in queries))
    grown = grow_one(
        TensorLift("qk", "qk", (packed,), (Split(0, queries, over),), (scale,)),
        exp_avg=torch.ones(12, dtype=torch.float64),
        exp_avg_sq=torch.ones(12, dtype=torch.float64),
    )
    expected = torch.tensor([0.5 * 3**-0.5] * 36 + [0.5 / 3] * 36, dtype=torch.float64)
    torch.testing.assert_close(grown["exp_avg"], expected)
    torch.testing.assert_close(grown["exp_avg_sq"], expected**2)


def test_scales_divide_and_zero_starts_afresh() -> None:
    entry = TensorLift("w", "w", (), (), (Scale(0, (2.0, 0.0, 0.5)),))
    grown = grow_one(entry, exp_avg=torch.tensor([1.0, 1.0, 1.0]), exp_avg_sq=torch.tensor([4.0, 9.0, 2.0]))
    assert grown["exp_avg"].tolist() == [0.5, 0.0, 2.0]
    assert grown["exp_avg_sq"].tolist() == [1.0, 4.5, 8.0]  # the mean of the others
    silenced = grow_one(
        TensorLift("w", "w", (), (), (Scale(0, (0.0, 0.0)),)),
        exp_avg=torch.ones(2), exp_avg_sq=torch.tensor([1.0, 3.0]),
    )  # fmt: skip
    assert silenced["exp_avg"].tolist() == [0.0, 0.0] and silenced["exp_avg_sq"].tolist() == [2.0, 2.0]
    gate = grow_one(
        TensorLift("g", "g", (), (), (Scale(0, (4.0,)),)),
        step=torch.tensor(3.0), exp_avg=torch.tensor(1.0), exp_avg_sq=torch.tensor(16.0),
    )  # fmt: skip
    assert (gate["exp_avg"], gate["exp_avg_sq"], gate["step"]) == (0.25, 1.0, 3.0) and gate["exp_avg"].shape == ()


def test_fresh_units_do_not_overshoot() -> None:
    """m = 0 and v at the mean of the mapped ones: with v = 0 Adam would overshoot (docs/growth.md 3.2)."""
    entry = TensorLift("w", "w", (IndexMap.leaf(2, 3, "free"), IndexMap.leaf(1, 2)), ())
    grown = grow_one(entry, exp_avg=torch.ones(2, 1), exp_avg_sq=torch.tensor([[4.0], [12.0]]))
    assert grown["exp_avg"].tolist() == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]
    assert grown["exp_avg_sq"].tolist() == [[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]

    def peak(v: float) -> float:
        """Largest update of an entry whose gradient is always 1, in learning rates, under an old step count."""
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=1.0)
        state = {"step": torch.tensor(1e5), "exp_avg": torch.zeros(1).double(), "exp_avg_sq": torch.full((1,), v)}
        load_state_by_name(optimizer, [("w", weight)], {"w": {**state, "exp_avg_sq": state["exp_avg_sq"].double()}})
        largest = 0.0
        for _ in range(50):
            before = weight.item()
            weight.grad = torch.ones(1, dtype=torch.float64)
            optimizer.step()
            largest = max(largest, abs(weight.item() - before))
        return largest

    assert peak(0.0) == pytest.approx(6.57, abs=0.02) and peak(1.0) < 1.3


def test_inserted_blocks() -> None:
    """m = 0 and the source's v; old blocks keep their state under their new names; the old state is left alone."""
    run = Run(program("flat")).train(3)
    state = run.state()
    result = GrowDepth().run(run.program)
    assert result.lift is not None
    mapped = result.lift.moments(state)
    assert mapped.keys() == {name for name, _ in result.program.parameters()}
    fresh = 0
    for entry in result.lift.tensors:
        old, new = state[entry.source], mapped[entry.name]
        assert torch.equal(new["exp_avg_sq"], old["exp_avg_sq"]) and new["step"] == 3
        assert torch.equal(new["exp_avg"], torch.zeros_like(old["exp_avg"]) if entry.fresh else old["exp_avg"])
        fresh += entry.fresh
    assert fresh
    memory = {value.data_ptr() for own in state.values() for value in own.values()}
    assert not memory & {value.data_ptr() for own in mapped.values() for value in own.values()}


def test_a_plan_maps_step_by_step_and_from_json() -> None:
    deep = GrowDepth().run(program("flat"))
    wide = GrowWidth(width="*2").run(deep.program)
    assert deep.lift is not None and wide.lift is not None
    plan = GrowthPlan("", (), (), {}, True, (), (), (deep.lift, wide.lift), 0)
    run = Run(program("flat")).train(2)
    mapped = plan.moments(run.state())
    twice = wide.lift.moments(deep.lift.moments(run.state()))
    again = GrowthPlan.from_json(plan.to_json()).moments(run.state())
    for name, tensor in wide.program.parameters():
        assert mapped[name]["exp_avg"].shape == tensor.shape
        for key, value in mapped[name].items():
            assert torch.equal(value, twice[name][key]) and torch.equal(value, again[name][key])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, amsgrad=True),
        lambda p: torch.optim.Adamax(p),
        lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.RAdam(p),
    ],
    ids=["sgd-momentum", "sgd", "amsgrad", "adamax", "rmsprop", "adagrad", "radam"],
)
def test_other_optimizers(make: Any) -> None:
    """State that torch's optimizers keep is what the same optimizer would have for the scaled gradients."""
    generator = torch.Generator().manual_seed(0)
    lift = Lift((TensorLift("w", "w", (IndexMap.leaf(3, 6), IndexMap.leaf(2, 4)), (Split(1),)),))
    small = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    large = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    optimizers = make([small]), make([large])
    for _ in range(3):
        small.grad = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        large.grad = 0.5 * small.grad.repeat_interleave(2, 0).repeat_interleave(2, 1)
        for optimizer in optimizers:
            optimizer.step()
    mapped = lift.moments(optimizer_state_by_name(optimizers[0], [("w", small)]))
    expected = optimizer_state_by_name(optimizers[1], [("w", large)])
    assert mapped.keys() == expected.keys()
    for key, value in expected.get("w", {}).items():
        torch.testing.assert_close(mapped["w"][key], value, rtol=1e-6, atol=1e-12)


def test_names_and_entries_that_are_carried() -> None:
    entry = TensorLift("new", "old", (IndexMap.leaf(2, 4),))
    lift = Lift((entry,), removed=frozenset({"gone", "old"}))
    kept = {"exp_avg": torch.ones(3), "note": "text"}
    mapped = lift.moments({
        "old": {"momentum_buffer": None, "exp_avg": torch.ones(2), "scale": torch.ones(5), "k": 3},
        "kept": kept,
        "gone": {"exp_avg": torch.ones(1)},
    })  # fmt: skip
    assert mapped.keys() == {"new", "kept"}
    assert mapped["new"]["momentum_buffer"] is None and mapped["new"]["k"] == 3 and mapped["new"]["scale"].shape == (5,)
    assert torch.equal(mapped["kept"]["exp_avg"], kept["exp_avg"]) and mapped["kept"]["note"] == "text"
    assert mapped["kept"]["exp_avg"] is not kept["exp_avg"]
    assert lift.moments({}) == {}  # nothing has a state yet, or the parameter is frozen


def test_low_precision_moments() -> None:
    grown = grow_one(
        TensorLift("w", "w", (IndexMap.leaf(1, 1000),)),
        exp_avg=torch.ones(1, dtype=torch.bfloat16), exp_avg_sq=torch.full((1,), 1024.0, dtype=torch.float16),
    )  # fmt: skip
    assert grown["exp_avg"].dtype == torch.bfloat16 and grown["exp_avg_sq"].dtype == torch.float16
    assert math.isclose(grown["exp_avg_sq"][0].item(), 1024e-6, rel_tol=1e-3)


def test_unknown_moments_are_refused() -> None:
    entry = TensorLift("w", "w", (IndexMap.leaf(2, 4),))
    message = r"optimizer state `hessian` of w: expected one of exp_avg, .*; remove it, or create a new optimizer"
    for state in ({"hessian": torch.ones(2)}, {"exp_avg": torch.ones(2), "hessian": torch.ones(2)}):
        with pytest.raises(InputError, match=message):
            grow_one(entry, **state)


def test_loading_refuses_what_does_not_fit() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([weight])
    with pytest.raises(InputError, match="optimizer state for v: expected a parameter that the optimizer trains"):
        load_state_by_name(optimizer, [("w", weight)], {"v": {"exp_avg": torch.zeros(4)}})
    with pytest.raises(InputError, match=r"`exp_avg` of w: expected shape \[4\], found \[2\]; map it with"):
        load_state_by_name(optimizer, [("w", weight)], {"w": {"exp_avg": torch.zeros(2)}})
    assert not optimizer.state
