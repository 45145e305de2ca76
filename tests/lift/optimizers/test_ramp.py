"""The ramp of what is new: updates grow linearly in new units, whatever the optimizer, and old ones are left alone."""

from __future__ import annotations

import json

import pytest
import torch

import progc
from progc.errors import InputError
from progc.lift.optimizers import Ramp
from progc.pipeline.manager import run
from tests.lift.optimizers.running import Make, fresh, parameters, train, twin

MAKE: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("kind", MAKE)
def test_updates_of_new_units_start_small(kind: str) -> None:
    """Against the same step without a ramp: a fifth of it in new rows and columns, all of it elsewhere."""
    program = fresh("mlp")
    optimizer = MAKE[kind](parameters(program))
    train(program, optimizer, 5)
    pipeline = "grow-width{axes=0:12 init=zero}"
    lifts = [result.lift for result in run(program, pipeline)[1] if result.lift is not None]
    large = progc.apply(program, pipeline, optimizer=optimizer)
    plain, plain_optimizer = twin(large, optimizer, MAKE[kind])
    ramp = Ramp.of(lifts, steps=5)
    assert ramp.new.keys() == {"0.weight", "0.bias", "2.weight"}
    ramp.attach(optimizer, large)
    start = {name: tensor.detach().clone() for name, tensor in large.parameters()}
    train(large, optimizer, 1)
    train(plain, plain_optimizer, 1)
    for name, tensor in large.parameters():
        moved, full = tensor.detach() - start[name], plain.tensors[name].detach() - start[name]
        expected = full.clone()
        if name in ("0.weight", "0.bias"):
            expected[8:] *= 0.2
        if name == "2.weight":
            expected[:, 8:] *= 0.2
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-15)
    assert ramp.factor == 0.4
    train(large, optimizer, 10)
    assert ramp.done == 5 and ramp.factor == 1.0
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_inserted_blocks_and_later_growth() -> None:
    """Inserted tensors are new as a whole; new rows stay new when a later step copies them; copies are not new."""
    program = fresh("flat")
    _, results = run(program, "grow-width{mlp=15 init=zero},grow-depth{to=*2},grow-width{width=*2}")
    ramp = Ramp.of([result.lift for result in results if result.lift is not None], steps=10)
    assert ramp.new["w1_1"] == {} and ramp.new["w1_3"] == {}
    assert ramp.new["w1_0"] == {0: (False,) * 20 + (True,) * 10}
    assert ramp.new["w2_2"] == {1: (False,) * 20 + (True,) * 10}
    assert "stem_w" not in ramp.new and "head_w" not in ramp.new and "g_0" not in ramp.new


def test_a_ramp_is_data_and_goes_on_after_loading() -> None:
    program = fresh("flat")
    optimizer = MAKE["adamw"](parameters(program))
    train(program, optimizer, 2)
    lifts = [result.lift for result in run(program, "grow-depth{to=*2}")[1] if result.lift is not None]
    large = progc.apply(program, "grow-depth{to=*2}", optimizer=optimizer)
    ramp = Ramp.of(lifts, steps=8)
    handle = ramp.attach(optimizer, large)
    train(large, optimizer, 3)
    other, again = twin(large, optimizer, MAKE["adamw"])
    assert handle is not None
    later = Ramp.from_json(json.loads(json.dumps(ramp.to_json())))
    assert later == ramp and later.done == 3
    later.attach(again, other)
    assert torch.equal(train(large, optimizer, 4), train(other, again, 4))
    handle.remove()
    train(large, optimizer, 4)
    assert ramp.done == 7


def test_frozen_and_foreign_parameters_are_left_out() -> None:
    program = fresh("mlp")
    lifts = [result.lift for result in run(program, "grow-width{axes=0:12 init=zero}")[1] if result.lift is not None]
    large = progc.apply(program, "grow-width{axes=0:12 init=zero}")
    optimizer = MAKE["adamw"](parameters(large, ["2.weight"]))
    Ramp.of(lifts, steps=3).attach(optimizer, large)
    before = large.tensors["0.weight"].detach().clone()
    train(large, optimizer, 3)
    assert torch.equal(large.tensors["0.weight"], before)


def test_misuse() -> None:
    program = fresh("mlp")
    lifts = [result.lift for result in run(program, "grow-width{axes=0:12 init=zero}")[1] if result.lift is not None]
    with pytest.raises(InputError, match="ramp: expected at least 1 step, got 0"):
        Ramp.of(lifts, steps=0)
    optimizer = MAKE["adamw"](parameters(program))
    with pytest.raises(InputError, match="ramp: the program has no 0.weight of the ramp's size"):
        Ramp.of(lifts, steps=3).attach(optimizer, program)
    assert Ramp.of([], steps=3).attach(optimizer, program) is None
