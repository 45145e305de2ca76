"""What is saved comes back bit for bit, and what does not fit is refused before anything changes."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import progc
from progc.checkpoints import State, latest, load, save, verify
from progc.checkpoints.rng import rng_state
from progc.data.order import DataPosition
from progc.errors import InputError
from tests.checkpoints.running import KINDS, Net, everything, new_state, same, train, trainable
from tests.nets import ConvNet


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_as_if_it_had_not_been_interrupted(kind: str, tmp_path: Path) -> None:
    state = new_state(kind)
    train(state, 3)
    folder = save(tmp_path / "run", state, 3, epoch=1, stage=2, data=DataPosition(5, 1, 40), config={"lr": 0.1})
    assert folder == tmp_path / "run" / "step-00000003" == latest(tmp_path / "run")
    saved = everything(state)
    losses = train(state, 3)
    after = everything(state)

    again = new_state(kind, seed=9)
    random.seed(9), np.random.seed(9)
    found = load(folder)
    assert not same(everything(again), saved)
    found.restore(again)
    assert same(everything(again), saved)
    assert train(again, 3) == losses and same(everything(again), after)
    assert found.data == DataPosition(5, 1, 40) and found.config == {"lr": 0.1}
    assert (found.manifest.step, found.manifest.epoch, found.manifest.stage) == (3, 1, 2)


def test_the_data_of_a_run_with_the_older_order_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and everything else come back: only the position means something else now."""
    state = new_state()
    train(state, 1)
    monkeypatch.setattr(DataPosition, "to_json", dataclasses.asdict)
    found = load(save(tmp_path, state, 1, data=DataPosition(5, 1, 40)))
    saved, again = everything(state), new_state(seed=9)
    found.restore(again)
    assert same(everything(again), saved)
    with pytest.raises(InputError, match="step-00000001: data order: expected version 2, got version 1"):
        _ = found.data


def test_the_comparison_can_fail() -> None:
    one, two = everything(new_state()), everything(new_state())
    assert same(one, two)
    two["ema"]["0.9/scale"].view(torch.int32).bitwise_xor_(1)
    assert not same(one, two)


def test_weights_and_averages_are_plain_files(tmp_path: Path) -> None:
    state = new_state()
    train(state, 2)
    folder = save(tmp_path, state, 2)
    Net().load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    Net().load_state_dict(load_file(folder / "ema-0.9.safetensors"), strict=True)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_wrappers_leave_no_trace_in_names(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    state = State(torch.compile(model), optimizer=torch.optim.SGD(model.parameters(), momentum=0.9))  # type: ignore
    folder = save(tmp_path, state, 0)
    assert set(load_file(folder / "model.safetensors")) == {"weight", "bias"}
    other = nn.Linear(3, 2)
    load(folder).restore(State(other, optimizer=torch.optim.SGD(other.parameters(), momentum=0.9)))
    assert torch.equal(other.weight, model.weight)


def test_parked_state_of_frozen_parameters_of_a_program(tmp_path: Path) -> None:
    program = progc.capture(ConvNet(), (torch.randn(2, 3, 16, 16),))
    module = program.module().train()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    frozen = progc.apply(program, "freeze{train=head}", optimizer=optimizer)
    state = State(frozen, optimizer=optimizer)
    saved = everything(state)
    assert saved["optimizers"][0]["parked"]
    folder = save(tmp_path, state, 1)

    twin = progc.apply(progc.capture(ConvNet(), (torch.randn(2, 3, 16, 16),)), "freeze{train=head}")
    trained = [tensor for _, tensor in twin.parameters() if tensor.requires_grad]
    again = State(twin, optimizer=torch.optim.AdamW(trained))
    load(folder).restore(again)
    assert same(everything(again), saved)

    unfrozen = progc.capture(ConvNet(), (torch.randn(2, 3, 16, 16),))
    wrong = State(unfrozen, optimizer=torch.optim.AdamW(t for _, t in unfrozen.parameters()))
    with pytest.raises(InputError, match="other trainable parameters: .* trains in the model .*; build stage 0 first"):
        load(folder).restore(wrong)
    load(folder).restore(wrong, skip=("frozen",))


def test_several_optimizers(tmp_path: Path) -> None:
    def build(seed: int) -> State:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        return State(
            model,
            {"a": torch.optim.SGD(model[0].parameters(), momentum=0.9), "b": torch.optim.Adam(model[1].parameters())},
        )

    state = build(0)
    state.model(torch.randn(2, 3)).sum().backward()  # type: ignore[operator]
    for optimizer in state.optimizers.values():
        optimizer.step()
    folder, other = save(tmp_path, state, 0), build(1)
    load(folder).restore(other)
    assert same(everything(other), everything(state))


MISFITS: dict[str, tuple[Any, str]] = {
    "untied": (lambda s: new_state(tied=False), "embed.weight, head.weight are tied on one side only"),
    "optimizer class": (lambda s: new_state("sgd"), "holds the state of AdamW; expected that of SGD"),
    "no ema": (
        lambda s: State(s.model, s.optimizer, None, s.scaler, s.controllers, s.generators),
        "holds ema, but the state does not; .* skip=",
    ),
    "decays": (
        lambda s: State(s.model, s.optimizer, progc.EMA(s.model, (0.9,)), s.scaler, s.controllers, s.generators),
        r"has averages of decays \[0.9, 0.999\], but the state has \[0.9\]",
    ),
    "another model": (lambda s: State(nn.Linear(2, 2), None), "holds controllers, but the state does not; build"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_and_nothing_changes(case: str, tmp_path: Path) -> None:
    build, message = MISFITS[case]
    folder = save(tmp_path, new_state(), 0)
    other = build(new_state(seed=1))
    before = everything(other)
    with pytest.raises(InputError, match=message):
        load(folder).restore(other)
    assert same(everything(other), before)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, State(nn.Linear(2, 2)), 0)
    with pytest.raises(InputError, match="bias is torch.float32, but in the model it is torch.float64"):
        load(folder).restore(State(nn.Linear(2, 2).double()))


def test_a_part_may_be_left_out_by_name(tmp_path: Path) -> None:
    state = new_state()
    folder = save(tmp_path, state, 0)
    other = Net()
    load(folder).restore(State(other), skip=("ema", "optimizer", "scaler", "controllers", "rng"))
    assert same(other.state_dict(), state.model.state_dict())
    with pytest.raises(InputError, match="unknown part 'emma'"):
        load(folder).restore(State(other), skip=("emma",))


def test_a_schedule_comes_back(tmp_path: Path) -> None:
    from progc.schedule import ModelRef, Point, Schedule, Space, Stage

    program = progc.capture(nn.Linear(2, 2), (torch.randn(1, 2),))
    schedule = Schedule(ModelRef.of(program), "linear", (Stage(0, Point(), 1.0),), Space())
    found = load(save(tmp_path, State(nn.Linear(2, 2)), 0, schedule=schedule))
    assert found.schedule == schedule and "schedule" in found.manifest.holds


def test_the_second_number_of_a_pair_is_not_forgotten(tmp_path: Path) -> None:
    """numpy draws normal numbers in pairs and keeps one of them."""
    state = new_state()
    np.random.standard_normal()
    folder = save(tmp_path, state, 1)
    expected = np.random.standard_normal(3).tolist()
    np.random.standard_normal()
    load(folder).restore(state)
    assert np.random.standard_normal(3).tolist() == expected


def test_a_rank_that_was_not_there_gets_numbers_of_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path, State(nn.Linear(2, 2)), 0)
    draws = []
    for rank in (0, 1, 2, 1):
        load(folder).restore(State(nn.Linear(2, 2)), rank=rank)
        draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert draws[1] == draws[3] and all(len({draw[k] for draw in draws[:3]}) == 3 for k in range(3))


def test_generators_by_other_names_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, State(nn.Linear(2, 2), generators={"a": torch.Generator()}), 0)
    other = State(nn.Linear(2, 2), generators={"b": torch.Generator()})
    before = rng_state({})
    with pytest.raises(InputError, match=r"holds generators \['a'\], but the state has \['b'\]"):
        load(folder).restore(other)
    assert same(rng_state({}), before)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: State(nn.Linear(2, 2, device="meta")), "weight has no values"),
        (lambda: State(nn.Linear(2, 2), controllers={"a": nn.ModuleDict(), "b": Odd()}), "training state .* is a set"),
    ],
)
def test_what_cannot_be_saved_is_said(state: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        save(tmp_path / "run", state(), 0)
    assert latest(tmp_path / "run") is None


class Odd:
    """State that is no data."""

    def state_dict(self) -> dict[str, Any]:
        return {"x": {1, 2}}


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config cannot be saved as JSON"):
        save(tmp_path, State(nn.Linear(2, 2)), 0, config={"a": float("nan")})


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    folder = save(tmp_path, new_state(), 12, run_id="abc")
    manifest = verify(folder)
    assert manifest.run == "abc" and manifest.world == 1
    assert set(manifest.holds) == {"model", "optimizer", "ema", "scaler", "controllers", "rng"}
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw["files"].keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert len(trainable(Net())) == 7
