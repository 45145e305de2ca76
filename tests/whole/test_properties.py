"""Analysis and measurement agree: random networks, random growth plans; and what growth keeps besides the function."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import progc
from progc.analysis.axes import registry
from progc.ir.check import compare
from progc.ir.program import Program
from tests.properties.networks import Recipe, Stage, build, captured, draw_recipe
from tests.properties.plans import Plan, draw_plan, judge, reverted
from tests.zoo import captured as zoo

PLANS = 3


@settings(max_examples=settings().max_examples // 5, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_growth_is_exact_or_refused(rng: random.Random) -> None:
    recipe = draw_recipe(rng)
    program = captured(recipe)
    for _ in range(PLANS):
        plan = draw_plan(rng, program)
        verdict, grown, lifts = judge(program, plan)
        if verdict.kind == "exact" and grown is not None:
            verdict = reverted(program, grown, lifts) or verdict
        assert verdict.kind != "disagreement", f"{recipe}\n{plan}\n{verdict.text}"


WRONG_RULES: dict[str, tuple[str, Recipe]] = {
    "statistics that are not recorded": (
        "layer_norm",
        Recipe("tokens", 6, (Stage("Modulated", 1, "residual"),), "normed"),
    ),
    "products of activations that are not recorded": (
        "scaled_dot_product_attention",
        Recipe("tokens", 8, (Stage("Attention", 618, "residual"),)),
    ),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_a_wrong_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, recipe = WRONG_RULES[name]
    right = registry._RULES[op]

    def forgetful(ctx: Any, node: Any, args: Any) -> Any:
        ctx.event = ctx._account = lambda *_, **__: None
        try:
            return right(ctx, node, args)
        finally:
            del ctx.event

    def kinds() -> set[str]:
        program = captured(recipe)
        growable = program.axes.growable
        twice = Plan(tuple((axis.name, 2 * axis.size) for axis in growable))
        odd = [Plan(((axis.name, axis.size + 1),)) for axis in growable]
        return {judge(program, plan)[0].kind for plan in (twice, *odd)}

    assert "disagreement" not in kinds()
    monkeypatch.setitem(registry._RULES, op, forgetful)
    assert "disagreement" in kinds()


def _same_function(first: Program, second: Program) -> bool:
    return compare(first, second, seed=1).max_rel < 1e-6


TIED = Recipe("ids", 8, (Stage("Gated", 3, "pre", 2),), "tied normed", 1)
TWICE = {  # source, two steps, one step
    "width of a transformer": ("own:einsum", ("width*2", "width*2"), "width*4"),
    "width of a convolutional network": ("own:conv", ("width*2", "width*2"), "width*4"),
    "depth": ("own:einsum", ("depth=5", "depth=7"), "depth=7"),
    "depth, then width": ("own:einsum", ("depth*2", "width*2"), "depth*2,width*2"),
    "width, then depth": ("own:einsum", ("width*2", "depth*2"), "depth*2,width*2"),
    "tied": ("tied", ("width*2", "width*2"), "width*4"),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_steps_are_one(name: str) -> None:
    source, steps, once = TWICE[name]
    program = captured(TIED) if source == "tied" else zoo(source)[1]
    first, second = functools.reduce(progc.grow, steps, program), progc.grow(program, once)
    shapes = [{name: tensor.shape for name, tensor in grown.tensors.items()} for grown in (first, second)]
    assert shapes[0] == shapes[1] and first.num_parameters() > program.num_parameters()
    assert _same_function(first, second) and _same_function(program, second)


@pytest.mark.parametrize(
    ("source", "target"), [("tied", "width*2"), ("tied", "depth*2"), ("transformers:gpt2", "mlp*2")]
)
def test_tied_parameters_stay_tied(source: str, target: str) -> None:
    program = captured(TIED) if source == "tied" else zoo(source)[1]
    assert program.tied
    grown = progc.grow(program, target)
    module, state = grown.module(), grown.module().state_dict()
    for alias, canonical in program.tied.items():
        assert grown.tensors[alias] is grown.tensors[canonical]
        assert state[alias].data_ptr() == state[canonical].data_ptr()
    assert len(list(module.parameters())) == len(list(program.parameters())) or target == "depth*2"
    assert len({id(p) for p in module.parameters()}) == len(list(grown.parameters()))


def test_a_parameter_shared_by_two_modules_stays_one() -> None:
    seed = next(s for s in range(99) if _kind(s) == "shared")
    recipe = Recipe("tokens", 6, (Stage("Shared", seed, "residual"),))
    program = captured(recipe)
    assert program.tied == {"stages.0.0.body.b.weight": "stages.0.0.body.a.weight"}
    grown = progc.grow(program, "width*2")
    assert grown.tensors["stages.0.0.body.b.weight"] is grown.tensors["stages.0.0.body.a.weight"]
    assert grown.tensors["stages.0.0.body.a.weight"].shape[1] == 12 and _same_function(program, grown)


def _kind(seed: int) -> str:
    from tests.properties.token_pieces import Shared

    kind: str = Shared(6, random.Random(seed)).kind
    return kind


def test_recipes_print_as_what_builds_them() -> None:
    recipe = draw_recipe(random.Random(5))
    assert eval(repr(recipe)) == recipe
    first, second = build(recipe).state_dict(), build(recipe).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_block_is_not_silenced_in_front_of_a_root() -> None:
    """The function would be kept, and every gradient would be NaN."""
    stages = (Stage("Bottleneck", 518976, "residual"), Stage("Flattened", 163449, "pre", 2))
    program = captured(Recipe("images", 4, stages, "pooled", 536918))
    assert judge(program, Plan(sizes="depth*2"))[0].kind == "exact"  # the other chain grows, this one is left alone
    verdict = judge(program, Plan(sizes="stages.1*2"))[0]
    assert verdict.kind == "refused" and "its gradient at zero is infinite" in verdict.text
