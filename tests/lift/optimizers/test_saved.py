"""Optimizer state by name: saved, loaded into an optimizer built in any other way, before and after freezing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import progc
from progc.errors import InputError
from progc.lift.moments import optimizer_state_by_name
from progc.lift.optimizers import load_optimizer, load_optimizer_state, optimizer_state, repoint, save_optimizer
from progc.lift.optimizers.holdings import PARKED
from tests.lift.optimizers.running import fresh, names_of, parameters, train, with_trained

KINDS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=torch.tensor(1e-2), momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "nadam": lambda p: torch.optim.NAdam(p),
}


def two_groups(program: progc.Program, kind: str) -> torch.optim.Optimizer:
    matrices = [tensor for tensor in parameters(program) if tensor.dim() > 1]
    rest = [tensor for tensor in parameters(program) if tensor.dim() < 2]
    optimizer = KINDS[kind]([{"params": matrices, "lr_scale": 0.5}, {"params": rest, "weight_decay": 0.0}])
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_after_save_and_load(kind: str, tmp_path: Path) -> None:
    """Bit by bit, through growth and files, into an optimizer with one group in another order."""
    program = fresh("flat")
    optimizer = two_groups(program, kind)
    train(program, optimizer, 3)
    grown = progc.apply(program, "grow-depth{to=*2},grow-width{width=*2}", optimizer=optimizer)
    train(grown, optimizer, 2)
    save_optimizer(tmp_path / "state", optimizer, grown)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["optimizer.json", "optimizer.safetensors"]
    other = fresh(grown)
    again = KINDS[kind](parameters(other)[::-1])
    load_optimizer(tmp_path / "state", again, other)
    assert names_of(again, other) == names_of(optimizer, grown)
    for one, two in zip(optimizer.param_groups, again.param_groups, strict=True):
        assert {k: v for k, v in one.items() if k != "params"} == {k: v for k, v in two.items() if k != "params"}
        assert {k: type(v) for k, v in one.items()} == {k: type(v) for k, v in two.items()}
    assert torch.equal(train(grown, optimizer, 3), train(other, again, 3))


def test_how_a_step_is_computed_is_up_to_the_optimizer_at_hand() -> None:
    """A state that a fused optimizer left on a GPU is loaded on a machine without one, and the other way round."""
    program = fresh("mlp")
    for own, other in (({"fused": True}, {}), ({}, {"fused": True}), ({"foreach": True}, {"fused": True})):
        optimizer = torch.optim.AdamW(parameters(program), lr=0.5, **own)
        again = torch.optim.AdamW(parameters(program), lr=0.1, **other)
        load_optimizer_state(again, program, optimizer_state(optimizer, program))
        (group,) = again.param_groups
        assert (group["fused"], group["foreach"], group["lr"]) == (other.get("fused"), None, 0.5)
        train(program, again, 1)


def test_the_state_says_names_and_is_the_optimizers_own() -> None:
    program = fresh("mlp")
    optimizer = two_groups(program, "adamw")
    train(program, optimizer, 1)
    saved = optimizer_state(optimizer, program)
    assert saved["groups"][0]["names"] == ["0.weight", "2.weight", "4.weight"] and saved["parked"] == {}
    assert saved["groups"][1]["options"]["weight_decay"] == 0.0
    held = optimizer_state_by_name(optimizer, program.parameters())
    assert saved["state"]["2.bias"]["exp_avg"] is held["2.bias"]["exp_avg"]
    load_optimizer_state(optimizer, program, saved)
    assert optimizer.state[program.tensors["2.bias"]]["exp_avg"] is not held["2.bias"]["exp_avg"]


@pytest.mark.parametrize("through", ["memory", "files"])
def test_freezing_between_save_and_load(through: str, tmp_path: Path) -> None:
    """Saved while all trains, loaded where some are frozen; saved there, loaded where all train again."""

    def carry(optimizer: Any, program: progc.Program, again: Any, other: progc.Program, step: str) -> None:
        if through == "memory":
            load_optimizer_state(again, other, copy.deepcopy(optimizer_state(optimizer, program)))
        else:
            save_optimizer(tmp_path / step, optimizer, program)
            load_optimizer(tmp_path / step, again, other)

    program = fresh("flat")
    optimizer = two_groups(program, "adamw")
    train(program, optimizer, 3)
    before = copy.deepcopy(optimizer_state_by_name(optimizer, program.parameters()))
    groups = names_of(optimizer, program)
    frozen = with_trained(program, lambda name: name.endswith("_1"))
    some = KINDS["adamw"](parameters(frozen))
    carry(optimizer, program, some, frozen, "first")
    left = [[name for name in names if name.endswith("_1")] for names in groups]
    assert names_of(some, frozen) == left and len(some.state[PARKED]["state"]) == len(before) - len(sum(left, []))
    whole = with_trained(frozen, lambda name: True)
    final = KINDS["adamw"](parameters(whole))
    carry(some, frozen, final, whole, "second")
    assert names_of(final, whole) == groups and PARKED not in final.state
    for name, own in optimizer_state_by_name(final, whole.parameters()).items():
        assert all(torch.equal(value, before[name][key]) for key, value in own.items())
    train(whole, final, 1)


def test_refusals_change_nothing(tmp_path: Path) -> None:
    program = fresh("mlp")
    optimizer = two_groups(program, "adamw")
    train(program, optimizer, 1)
    good = optimizer_state(optimizer, program)
    wide = progc.apply(program, "grow-width{axes=0:16}")
    partial = copy.deepcopy(good)
    partial["groups"][0]["names"].remove("0.weight")
    homeless = copy.deepcopy(partial)
    rest = torch.optim.AdamW([tensor for tensor in parameters(program) if tensor.shape != (8, 6)])
    parked = {**good, "parked": {"0.weight": 9}}
    renamed = {**good, "parked": {"1.weight": 0}}
    cases: list[tuple[Any, progc.Program, Any, str]] = [
        (
            optimizer,
            program,
            optimizer.state_dict(),
            "expected the keys groups, parked and state, found state, param_groups",
        ),
        (optimizer, program, partial, r"nothing was saved for 0.weight \(1 parameters in all\)"),
        (rest, program, homeless, "optimizer state for 0.weight: no group holds it"),
        (optimizer, program, renamed, "optimizer state for 1.weight: the program has no such parameter"),
        (optimizer, program, {**good, "state": {"other": {}}}, "optimizer state for other: the program has no such"),
        (optimizer, program, parked, "0.weight belongs to parameter group 9; the optimizer has 2"),
        (torch.optim.AdamW(parameters(wide)), wide, good, r"expected shape \[16, 6\], found \[8, 6\]"),
    ]
    held = {id(key): id(value) for key, value in optimizer.state.items()}
    for target, own, saved, message in cases:
        with pytest.raises(InputError, match=message):
            load_optimizer_state(target, own, saved)
    assert {id(key): id(value) for key, value in optimizer.state.items()} == held


def test_files_that_are_no_state(tmp_path: Path) -> None:
    program = fresh("mlp")
    optimizer = two_groups(program, "adamw")
    train(program, optimizer, 1)
    with pytest.raises(InputError, match="is not optimizer state .*; expected what save_optimizer wrote"):
        load_optimizer(tmp_path, optimizer, program)
    save_optimizer(tmp_path / "a", optimizer, program)
    with pytest.raises(InputError, match="is not empty"):
        save_optimizer(tmp_path / "a", optimizer, program)
    with pytest.raises(InputError, match="holds the state of AdamW; expected that of SGD"):
        load_optimizer(tmp_path / "a", torch.optim.SGD(parameters(program)), program)
    path = tmp_path / "a" / "optimizer.json"
    path.write_text(path.read_text().replace('"state/0.bias/exp_avg"', '"state/0.bias/other"'))
    with pytest.raises(
        InputError, match="names tensor 'state/0.bias/other', which optimizer.safetensors does not hold"
    ):
        load_optimizer(tmp_path / "a", optimizer, program)
    path.write_text('{"optimizer": "AdamW", "held": {"dict": {"groups": {"list": 3}}}}')
    with pytest.raises(InputError, match="optimizer.json is not optimizer state"):
        load_optimizer(tmp_path / "a", optimizer, program)
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(InputError, match="optimizer state groups/0/options/hook is a builtin_function_or_method"):
        save_optimizer(tmp_path / "b", optimizer, program)
    assert not (tmp_path / "b").exists()
    optimizer.param_groups[0]["hook"] = float("inf")
    save_optimizer(tmp_path / "c", optimizer, program)
    json.loads((tmp_path / "c" / "optimizer.json").read_text())
    load_optimizer(tmp_path / "c", optimizer, program)
    assert optimizer.param_groups[0]["hook"] == float("inf")


def test_parked_state_survives_torchs_own_files(tmp_path: Path) -> None:
    program = fresh("mlp")
    optimizer = torch.optim.AdamW(parameters(program))
    train(program, optimizer, 2)
    frozen = with_trained(program, lambda name: name.startswith("4"))
    repoint(optimizer, program, frozen, [])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = torch.optim.AdamW(parameters(frozen))
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    whole = with_trained(frozen, lambda name: True)
    repoint(again, frozen, whole, [])
    assert len(again.state) == 6 and again.state[whole.tensors["0.weight"]]["step"] == 2
