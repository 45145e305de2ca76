"""Growth undone: the old weights come back right after growth, and something near them after more training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from progc.errors import InputError
from progc.growth.grow import Growth, grow_with_report
from progc.growth.plan import GrowthPlan
from progc.ir.check import compare
from progc.ir.program import Program
from progc.lift.entry import Scale, Split, TensorLift
from progc.lift.index_map import IndexMap
from progc.lift.lift import Lift
from progc.lift.revert import kept_units, revert
from progc.models.sizes import parse_sizes
from tests.zoo import captured

TARGETS = {
    "own:einsum": ("width*2", "depth*2", "depth*2,width*3", "mlp=45"),
    "own:conv": ("width*2", "width*1.5"),
    "own:flat": ("width*2", "depth=7"),
    "own:tied": ("width*2",),
    "timm:resnet18@64": ("depth*2",),
    "transformers:gpt2": ("width*2,depth*2",),
    "transformers:bert": ("depth*2",),
}


def _grown(source: str, target: str, **inits: str) -> tuple[Program, Growth]:
    program = captured(source)[1]
    return program, grow_with_report(program, parse_sizes(target), inits=inits, lossy=True)


def _assert_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor], rtol: float = 1e-6) -> None:
    assert set(first) == set(second)
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, rtol=rtol, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("source", "target"), [(s, t) for s, targets in TARGETS.items() for t in targets])
def test_grow_then_revert_gives_the_old_weights(source: str, target: str) -> None:
    program, growth = _grown(source, target)
    assert growth.program.num_parameters() > program.num_parameters()
    old = growth.plan.revert(growth.program.tensors)
    _assert_equal(program.tensors, old)
    for name, tensor in program.tensors.items():
        assert type(old[name]) is type(tensor) and old[name].dtype == tensor.dtype
        assert old[name].requires_grad == tensor.requires_grad
    for alias, canonical in program.tied.items():
        assert old[alias] is old[canonical]
    assert (
        compare(program, program.replace(tensors={name: old[name] for name in program.tensors}), seed=0).max_rel < 1e-6
    )


@pytest.mark.parametrize("inits", [{"width": "zero"}, {"width": "random"}, {"depth": "random"}, {"depth": "stack"}])
def test_every_init_can_be_undone(inits: dict[str, str]) -> None:
    program, growth = _grown("own:einsum", "depth*2,width*2", **inits)
    _assert_equal(program.tensors, growth.plan.revert(growth.program.tensors))


def test_a_state_dict_and_a_plan_from_json_will_do() -> None:
    program, growth = _grown("own:tied", "width*2")
    state = growth.program.module().state_dict()
    old = GrowthPlan.from_json(growth.plan.to_json()).revert(state)
    _assert_equal({name: program.tensors[name].detach() for name in old}, old)
    for alias, canonical in program.tied.items():
        assert old[alias].data_ptr() == old[canonical].data_ptr()


def test_what_did_not_grow_is_the_same_object() -> None:
    program, growth = _grown("own:einsum", "mlp=45")
    old = growth.plan.revert(growth.program.tensors)
    assert old["embed.weight"] is program.tensors["embed.weight"]
    assert old["layers.0.up.weight"] is not program.tensors["layers.0.up.weight"]


def test_trained_copies_become_the_first_row_and_the_sum_of_the_columns() -> None:
    axis = IndexMap.leaf(2, 5)  # units 0 0 0 1 1
    lift = Lift((TensorLift("up", "up", (axis, None)), TensorLift("down", "down", (None, axis), (Split(1),))))
    up = torch.arange(10.0).reshape(5, 2)
    down = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    old = revert(lift, {"up": up, "down": down})
    assert torch.equal(old["up"], up[[0, 3]])
    assert torch.equal(old["down"], torch.tensor([[7.0, 24.0]]))


def test_new_units_and_their_columns_are_dropped() -> None:
    axis = IndexMap.concat((IndexMap.leaf(2, 3, "free"), IndexMap.leaf(1, 2)))
    lift = Lift((TensorLift("down", "down", (None, axis), (Split(1),)),))
    assert kept_units(axis).tolist() == [True, True, False, True, True]
    assert revert(lift, {"down": torch.tensor([[1.0, 2.0, 100.0, 3.0, 4.0]])})["down"].tolist() == [[1.0, 2.0, 7.0]]


def test_shares_of_some_factors_and_of_some_units() -> None:
    product = IndexMap.product((IndexMap.leaf(2, 4), IndexMap.leaf(2, 4)))
    inner = IndexMap.product((IndexMap.leaf(4, 4), IndexMap.leaf(2, 4)))
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    for split in (Split(1, over=inner), Split(1, where=(True, False, True, False)), Split(1)):
        lift = Lift((TensorLift("w", "w", (None, product), (split,), (Scale(0, (2.0, 1.0, 0.5)),)),))
        torch.testing.assert_close(revert(lift, lift.apply({"w": weight}))["w"], weight, rtol=1e-6, atol=0)


def test_weights_after_training_give_a_network_near_by() -> None:
    """Copies that have hardly parted: the small network answers nearly as the large one does."""
    program, growth = _grown("own:einsum", "width*2")
    torch.manual_seed(3)
    moved: dict[int, Tensor] = {}
    for tensor in growth.program.tensors.values():
        noise = 1e-4 * tensor.detach().abs().mean() * torch.randn(tensor.shape)
        moved[id(tensor)] = nn.Parameter(tensor.detach() + noise) if isinstance(tensor, nn.Parameter) else tensor
    trained = growth.program.replace(tensors={name: moved[id(t)] for name, t in growth.program.tensors.items()})
    small = growth.plan.revert(trained.tensors)
    answer = program.replace(tensors={name: small[name] for name in program.tensors})
    assert 1e-7 < compare(trained, growth.program, seed=0).max_rel
    assert compare(trained, answer, seed=0).max_rel < 1e-2


@dataclasses.dataclass(frozen=True)
class _Padded(TensorLift):
    pad: float | None = None


def test_refusals() -> None:
    axis = IndexMap.leaf(2, 4)
    lift = Lift((TensorLift("w", "w", (axis,)),))
    with pytest.raises(InputError, match="w is missing"):
        revert(lift, {})
    with pytest.raises(InputError, match=r"w has shape \[3\]; expected 4 in dim 0, its size after growth"):
        revert(lift, {"w": torch.zeros(3)})
    with pytest.raises(InputError, match="w was grown with pad, which cannot be undone yet"):
        revert(Lift((_Padded("w", "w", (axis,), pad=0.5),)), {"w": torch.zeros(4)})
    with pytest.raises(InputError, match="w was grown by `mean`, which cannot be undone yet"):
        unknown = IndexMap.leaf(2, 4, "mean")  # type: ignore[arg-type]
        revert(Lift((TensorLift("w", "w", (unknown,)),)), {"w": torch.zeros(4)})
    with pytest.raises(InputError, match="growth replaced the values of w"):
        revert(Lift((TensorLift("w", "w", fill=1.0),)), {"w": torch.zeros(4)})
