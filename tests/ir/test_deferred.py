"""Deferred tensors: made when asked for, one at a time, and the same to the bit as those made at once."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from progc.errors import CheckError
from progc.growth.grow import Growth, grow_with_report
from progc.ir.check import compare
from progc.ir.deferred import all_deferred, all_values, defer, is_deferred, values
from progc.ir.program import Program
from progc.ir.tensor_file import read_deferred, write_tensors
from progc.lift.entry import Scale, TensorLift
from progc.lift.lift import Lift
from progc.models.sizes import parse_sizes
from tests import zoo


def eager(growth: Growth, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The grown tensors as lifts on real tensors make them, one whole set after the other."""
    for lift in growth.plan.lifts:
        tensors = lift.apply(tensors)
    return tensors


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(values(tensor), wanted[name]) for name, tensor in found.items())


def test_a_deferred_tensor_promises_and_keeps() -> None:
    real = nn.Parameter(torch.randn(3, 4).T, requires_grad=False)
    later = defer(lambda: real.detach() * 2, real)
    assert is_deferred(later) and later.is_meta and isinstance(later, nn.Parameter) and not later.requires_grad
    assert later.stride() == real.stride() and torch.equal(values(later), real * 2)
    assert isinstance(values(later), nn.Parameter) and values(real) is real and not is_deferred(real)
    assert not is_deferred(later.detach())  # a plain meta tensor: nobody takes it for the values
    with pytest.raises(AssertionError, match="another shape or dtype"):
        values(defer(lambda: real, real, (5, 4)))


def test_names_of_one_memory_stay_one() -> None:
    state = zoo.captured("own:tied")[0].state_dict()  # gives tied parameters as two views of one memory
    later = all_deferred(state)
    assert later["head.weight"] is later["embed.weight"]
    found = all_values(later)
    assert found["head.weight"] is found["embed.weight"] and same(later, state)


@pytest.mark.parametrize(
    ("name", "sizes", "inits"),
    [
        ("timm:vit_tiny_patch16_224@64", "width*2,depth*2", {}),
        ("timm:resnet18@64", "width*2", {}),
        ("own:flat", "width*2,depth*2", {"width": "zero"}),
        ("own:flat", "depth*2", {"depth": "random"}),
        ("transformers:bert_mlm", "width*2", {"width": "random"}),
        ("own:tied", "width*2", {}),
    ],
)
def test_growth_is_that_of_lifts_on_real_tensors(name: str, sizes: str, inits: dict[str, str]) -> None:
    program = zoo.captured(name)[1]
    before = {key: tensor.detach().clone() for key, tensor in program.tensors.items()}
    growth = grow_with_report(program, parse_sizes(sizes), inits=inits, lossy=True)
    assert not any(map(is_deferred, growth.program.tensors.values()))
    assert same(dict(growth.program.tensors), eager(growth, dict(program.tensors)))
    assert all(torch.equal(tensor, before[key]) for key, tensor in program.tensors.items())
    for alias, canonical in growth.program.tied.items():
        assert growth.program.tensors[alias] is growth.program.tensors[canonical]
    average = {key: tensor.detach() * 0.5 if tensor.is_floating_point() else tensor for key, tensor in before.items()}
    assert same(growth.plan.deferred(average), eager(growth, average))


def test_grown_tensors_are_made_for_the_file_and_then_forgotten(tmp_path: Path) -> None:
    """While a network is written and checked, at most one of its grown tensors exists (of those that grow)."""
    program = zoo.captured("own:flat")[1]
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    plain = Lift._grow

    def counted(self: Lift, source: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal most
        made = plain(self, source, *rest)
        alive.add(made)
        most = max(most, len(alive))
        return made

    def place(grown: Program) -> Program:
        write_tensors(tmp_path / "m.safetensors", grown.persistent())
        stored = read_deferred(tmp_path / "m.safetensors", grown.persistent())
        return grown.replace(tensors={**grown.tensors, **stored})

    gc.collect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lift, "_grow", counted)
        growth = grow_with_report(program, parse_sizes("width*2"), place=place)
    assert growth.report["lossless"] and growth.report["max_rel_diff"] < 1e-9
    assert 1 <= most <= 2  # the one that was written lives until the next is there
    assert same(dict(growth.program.complete().tensors), eager(growth, dict(program.tensors)))


def test_a_lift_makes_deferred_tensors_of_deferred_ones_only() -> None:
    weight, bias = nn.Parameter(torch.randn(2, 2)), torch.randn(2)
    lift = Lift((TensorLift("a", "w"), TensorLift("b", "w", scales=(Scale(0, (2.0, 0.0)),)), TensorLift("c", "bias")))
    later = all_deferred({"w": weight})["w"]
    grown = lift.apply({"w": later, "bias": bias})
    assert grown["a"] is later and grown["c"] is bias
    assert is_deferred(grown["b"]) and torch.equal(values(grown["b"]), weight * torch.tensor([[2.0], [0.0]]))


def test_a_program_of_deferred_tensors_runs_and_states_its_values() -> None:
    module, program = zoo.captured("own:flat")
    later = program.deferred
    assert all(is_deferred(tensor) for _, tensor in later.parameters()) and program.deferred is later
    assert later.num_parameters() == program.num_parameters()
    assert compare(program, later, seed=0).max_abs == 0.0
    x = program.example[0]
    assert torch.equal(later.module().eval()(*x), module(*x))
    assert same(later.state_dict(), program.state_dict()) and not any(map(is_deferred, later.state_dict().values()))


def test_a_meta_tensor_without_values_is_never_taken_for_one() -> None:
    program = zoo.captured("own:flat")[1]
    bare = {name: tensor.detach() for name, tensor in program.deferred.tensors.items()}
    with pytest.raises(CheckError):
        compare(program, program.replace(tensors=bare), seed=0)
