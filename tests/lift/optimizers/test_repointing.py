"""Optimizer surgery: groups, options and state follow the parameters, by name; nothing happens by halves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim.adafactor import Adafactor as SizedAdafactor
from timm.optim.lion import Lion
from timm.optim.nadamw import NAdamW
from torch import nn
from torch.optim import Optimizer

import progc
from progc.errors import InputError
from progc.ir.program import Program, TensorSpec
from progc.lift.entry import Made, TensorLift
from progc.lift.lift import Lift
from progc.lift.moments import optimizer_state_by_name
from progc.lift.optimizers import repoint
from progc.lift.optimizers.holdings import PARKED
from progc.pipeline.manager import run
from tests.lift.optimizers.running import Make, fresh, names_of, parameters, train, with_trained

BOTH = "grow-depth{to=*2},grow-width{width=*2}"

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "lion": lambda p: Lion(p, lr=1e-4),
    "nadamw": lambda p: NAdamW(p),
}


def lifts_of(program: Program, pipeline: str) -> list[Lift]:
    return [result.lift for result in run(program, pipeline)[1] if result.lift is not None]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_of_optimizer_goes_on(kind: str) -> None:
    program = fresh("flat")
    optimizer = OPTIMIZERS[kind](parameters(program))
    train(program, optimizer, 3)
    expected = optimizer_state_by_name(optimizer, program.parameters())
    for lift in lifts_of(program, BOTH):
        expected = lift.moments(expected)
    grown = progc.apply(program, BOTH, optimizer=optimizer)
    assert names_of(optimizer, grown) == [[name for name, _ in grown.parameters()]]
    found = optimizer_state_by_name(optimizer, grown.parameters())
    assert found.keys() == expected.keys() and (kind == "sgd" or found.keys() == {n for n, _ in grown.parameters()})
    for name, own in expected.items():
        for key, value in own.items():
            torch.testing.assert_close(found[name][key], value, rtol=0, atol=0)
    before = {name: tensor.detach().clone() for name, tensor in grown.parameters()}
    train(grown, optimizer, 2)
    assert not [name for name, tensor in grown.parameters() if torch.equal(tensor, before[name])]
    again = OPTIMIZERS[kind](parameters(grown))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(grown, again, 1)


@pytest.mark.parametrize("name", ["lm", "einsum", "conv"])
def test_adafactor_factors_are_what_it_would_have_found(name: str) -> None:
    """Rows and columns of the grown second moment, against the optimizer run on the grown gradients."""
    program = fresh(name)
    pipeline = "grow-width{width=*2 noise=0.0}" if name != "conv" else "grow-width{width=*3 noise=0.0}"
    optimizer = torch.optim.Adafactor(parameters(program), lr=0.0)
    train(program, optimizer, 3)
    grown = progc.apply(program, pipeline, optimizer=optimizer)
    fresh_one = torch.optim.Adafactor(parameters(grown), lr=0.0)
    train(grown, fresh_one, 3)
    checked = 0
    for key, tensor in grown.parameters():
        for kind, value in optimizer.state[tensor].items():
            expected = fresh_one.state[tensor][kind]
            assert value.shape == expected.shape, (key, kind)
            if kind != "step" and expected.max() > 1e-20:  # softmax and norms leave some gradients at rounding
                torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-25)
                checked += 1
    assert checked > 10


def test_groups_of_ones_own_are_kept() -> None:
    """Decay by shape, layer by layer learning rates, one parameter left out: inserted blocks join their source's."""
    program = fresh("flat")
    chosen: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, tensor in program.parameters():
        if name != "head_b":
            assert isinstance(tensor, nn.Parameter)
            layer = int(name[-1]) if name[-1].isdigit() else 9
            chosen.setdefault((layer, tensor.dim() > 1), []).append(tensor)
    groups: list[dict[str, Any]] = [
        {"params": own, "lr_scale": 0.9**layer, "weight_decay": 0.05 * decays, "name": f"{layer} {decays}"}
        for (layer, decays), own in chosen.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = names_of(optimizer, program)
    dicts = [id(group) for group in optimizer.param_groups]
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    grown = progc.apply(program, BOTH, optimizer=optimizer)
    after = names_of(optimizer, grown)
    assert [id(group) for group in optimizer.param_groups] == dicts
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == options
    # Two blocks became four: 0 and its copy 1, then 2 (it was 1) and its copy 3.
    for old, new in zip(before, after, strict=True):
        twice = [n[:-1] + str(2 * int(n[-1]) + k) for k in (0, 1) for n in old if n[-1].isdigit()]
        assert sorted(new) == sorted(twice or old)
    assert "head_b" not in sum(after, [])
    train(grown, optimizer, 1)
    schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}


def test_a_group_in_an_order_of_its_own_keeps_it() -> None:
    program = fresh("flat")
    names = [name for name, _ in program.parameters()]
    order = names[::-1]
    optimizer = torch.optim.SGD([program.tensors[name] for name in order], lr=0.1)
    grown = progc.apply(program, "grow-depth{to=*2}", optimizer=optimizer)
    (found,) = names_of(optimizer, grown)
    assert found[:3] == ["head_b", "head_w", "b2_2"] and found[3] == "b2_3" and found[-1] == "stem_w"


def test_named_parameters_get_the_new_names() -> None:
    program = fresh("flat")
    optimizer = torch.optim.AdamW(list(program.module().named_parameters()))
    grown = progc.apply(program, "grow-depth{to=*2}", optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in grown.parameters()]


def test_several_optimizers() -> None:
    """Matrices under Muon, the rest under AdamW: every new tensor goes where its source is."""
    program = fresh("flat")
    matrices = [name for name, tensor in program.parameters() if tensor.dim() == 2]
    muon = torch.optim.Muon(parameters(program, matrices))
    adamw = torch.optim.AdamW([tensor for tensor in parameters(program) if tensor.dim() != 2])
    train(program, [muon, adamw], 2)
    grown = progc.apply(program, BOTH, optimizer=[muon, adamw])
    assert all(tensor.dim() == 2 for tensor in muon.param_groups[0]["params"])
    held = sum(names_of(muon, grown) + names_of(adamw, grown), [])
    assert sorted(held) == sorted(name for name, _ in grown.parameters())
    train(grown, [muon, adamw], 2)


def test_parameters_of_the_users_own_model_are_the_same_objects() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    program = progc.capture(model, (torch.randn(2, 3),))
    grown = progc.grow(program, width=2, optimizer=optimizer)
    assert [tuple(t.shape) for t in optimizer.param_groups[0]["params"]] == [(8, 3), (8,), (2, 8), (2,)]
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], grown.module().parameters(), strict=True))


def test_tied_parameters_stay_one() -> None:
    program = fresh("lm")
    optimizer = torch.optim.AdamW(parameters(program))
    train(program, optimizer, 2)
    grown = progc.apply(program, "grow-width{width=*2}", optimizer=optimizer)
    assert names_of(optimizer, grown)[0].count("embed.weight") == 1 and grown.tied == {"head.weight": "embed.weight"}
    assert optimizer.state[grown.tensors["head.weight"]]["exp_avg"].shape == (13, 16)


def test_nothing_to_do_leaves_the_optimizer_as_it_is() -> None:
    program = fresh("mlp")
    optimizer = torch.optim.AdamW(parameters(program))
    train(program, optimizer, 1)
    held = {name: own["exp_avg"] for name, own in optimizer_state_by_name(optimizer, program.parameters()).items()}
    same = progc.apply(program, "grow-width", optimizer=optimizer)
    assert all(optimizer.state[same.tensors[name]]["exp_avg"] is value for name, value in held.items())


def test_new_layers_of_a_dense_chain() -> None:
    """They are new and grow at once: moments of every kind come in the new size."""
    program = fresh(progc.capture(Dense().double(), (torch.randn(4, 3, 6, 6, dtype=torch.float64),)))
    for make in OPTIMIZERS.values():
        source = fresh(program)
        optimizer = make(parameters(source))
        train(source, optimizer, 2)
        grown = progc.apply(source, "grow-depth{to=4}", optimizer=optimizer)
        train(grown, optimizer, 1)


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Conv2d(4 + 2 * i, 2, 1)) for i in range(3))
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))


# --- parameters that appear, and that freeze ------------------------------------------------------------------------


def with_stage(program: Program) -> tuple[Program, Lift]:
    """A program with a parameter that has no predecessor."""
    lift = Lift((), made=(Made("stage", (5, 4), dtype="float64"),))
    tensors = lift.apply(program.tensors)
    return program.replace(tensors=tensors, specs={**program.specs, "stage": TensorSpec("parameter")}), lift


def test_made_parameters_go_to_the_first_group_or_where_the_caller_says() -> None:
    for made, expected in (((0, 0), (0, 0)), ((1, 1), (1, 1))):
        program = fresh("mlp")
        first = torch.optim.SGD(parameters(program, ["0.weight", "0.bias"]), lr=0.1)
        other = [{"params": parameters(program, [name])} for name in ("2.weight", "2.bias")]
        optimizers: list[Optimizer] = [first, torch.optim.AdamW(other)]
        grown, lift = with_stage(program)
        repoint(optimizers, program, grown, [lift], made=made)
        places = [
            (i, j)
            for i, optimizer in enumerate(optimizers)
            for j, names in enumerate(names_of(optimizer, grown))
            if "stage" in names
        ]
        assert places == [expected]
    with pytest.raises(InputError, match=r"made=\(0, 7\): expected the index of an optimizer"):
        repoint(optimizers, grown, grown, [], made=(0, 7))


@pytest.mark.parametrize("grow_between", [False, True])
def test_frozen_parameters_leave_and_come_back_with_their_state(grow_between: bool) -> None:
    program = fresh("flat")
    groups = [
        {"params": parameters(program, [name]), "lr": 0.001 * (1 + i)}
        for i, (name, _) in enumerate(program.parameters())
    ]
    optimizer = torch.optim.AdamW(groups)
    train(program, optimizer, 3)
    kept = {name: copy.deepcopy(own) for name, own in optimizer_state_by_name(optimizer, program.parameters()).items()}
    homes = {name: index for index, names in enumerate(names_of(optimizer, program)) for name in names}

    frozen = with_trained(program, lambda name: name.startswith("head"))
    repoint(optimizer, program, frozen, [])
    assert sum(names_of(optimizer, frozen), []) == ["head_w", "head_b"] and len(optimizer.param_groups) == len(homes)
    assert set(optimizer.state[PARKED]["state"]) == homes.keys() - {"head_w", "head_b"}  # type: ignore[index]
    train(frozen, optimizer, 2)

    saved = copy.deepcopy(optimizer.state_dict())
    optimizer = torch.optim.AdamW(
        [{"params": [t for t in [frozen.tensors[name]] if t.requires_grad]} for name in homes], lr=1.0
    )
    optimizer.load_state_dict(saved)
    if grow_between:
        lifts = lifts_of(frozen, "grow-width{width=*2}")
        grown = progc.apply(frozen, "grow-width{width=*2}", optimizer=optimizer)
        for lift in lifts:
            kept = lift.moments(kept)
        frozen = grown
    back = with_trained(frozen, lambda name: True)
    repoint(optimizer, frozen, back, [])
    assert PARKED not in optimizer.state
    assert {name: i for i, names in enumerate(names_of(optimizer, back)) for name in names} == homes
    for name, own in optimizer_state_by_name(optimizer, back.parameters()).items():
        if not name.startswith("head"):
            for key, value in own.items():
                assert torch.equal(value, kept[name][key]), (name, key)
    assert optimizer.state[back.tensors["head_w"]]["step"] == 5
    assert [group["lr"] for group in optimizer.param_groups] == [0.001 * (1 + i) for i in range(len(homes))]
    train(back, optimizer, 1)


def test_everything_frozen_and_saved() -> None:
    """Adagrad asks the first state it meets for its step, whatever it is."""
    program = fresh("mlp")
    optimizer = torch.optim.Adagrad(parameters(program))
    frozen = with_trained(program, lambda name: False)
    repoint(optimizer, program, frozen, [])
    assert not any(group["params"] for group in optimizer.param_groups)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    back = with_trained(frozen, lambda name: True)
    repoint(optimizer, frozen, back, [])
    assert names_of(optimizer, back) == [[name for name, _ in back.parameters()]]
    train(back, optimizer, 1)


# --- refusals: one line, and nothing is changed ---------------------------------------------------------------------


def unchanged(optimizer: Optimizer) -> Callable[[], bool]:
    groups = [list(group["params"]) for group in optimizer.param_groups]
    state = {id(key): id(value) for key, value in optimizer.state.items()}

    def check() -> bool:
        same = [list(map(id, group["params"])) for group in optimizer.param_groups] == [
            list(map(id, g)) for g in groups
        ]
        return same and {id(key): id(value) for key, value in optimizer.state.items()} == state

    return check


def test_parameters_that_the_program_does_not_have() -> None:
    program = fresh("mlp")
    stranger, known = nn.Linear(7, 3), torch.optim.AdamW(parameters(program, ["0.weight"]))
    optimizer = torch.optim.AdamW([*parameters(program), *stranger.parameters()])
    train(program, [optimizer, known], 1)
    checks = [unchanged(optimizer), unchanged(known)]
    ema = progc.EMA(program)
    before = ema.tensors
    for grow in (
        lambda: progc.apply(program, "grow-width{width=*2}", optimizer=[known, optimizer], ema=ema),
        lambda: progc.grow(program, "0=16", optimizer=[known, optimizer], ema=ema),
    ):
        with pytest.raises(InputError) as refused:
            grow()
        assert str(refused.value) == (
            "2 of 8 parameters of the optimizer are not in the program, the first of shape [3, 7]; build the optimizer "
            "over the parameters of program.module() or of the captured model, and train others with another optimizer"
        )
        assert refused.value.exit_code == 2
    assert all(check() for check in checks)
    assert all(ema.tensors[decay][name] is tensor for decay, copy_ in before.items() for name, tensor in copy_.items())


def test_state_that_cannot_be_mapped() -> None:
    for make, message in (
        (lambda p: torch.optim.ASGD(p), "optimizer state `ax` of 0.weight: expected one of exp_avg"),
        (
            lambda p: torch.optim.LBFGS(p),
            "optimizer state `al` of 0.weight is a list of tensors, which growth cannot map; clear",
        ),
        (lambda p: SizedAdafactor(p), r"Adafactor chooses the state of \S+ by its size \(min_dim_size_to_factor\)"),
    ):
        program = fresh("mlp")
        optimizer = make(parameters(program))  # type: ignore[no-untyped-call]
        if isinstance(optimizer, torch.optim.LBFGS):
            module, (inputs,) = program.module().train(), program.example[0]

            def closure(module: Any = module, inputs: Any = inputs, optimizer: Any = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = module(inputs).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
        else:
            train(program, optimizer, 1)
        check = unchanged(optimizer)
        with pytest.raises(InputError, match=message):
            progc.apply(program, "grow-width{axes=0:16}", optimizer=optimizer)
        assert check()
    optimizer.state.clear()
    grown = progc.apply(program, "grow-width{axes=0:16}", optimizer=optimizer)
    train(grown, optimizer, 1)


def test_other_misuse() -> None:
    program = fresh("mlp")
    with pytest.raises(InputError, match="expected a torch optimizer or a list of them, found str"):
        progc.apply(program, "grow-width{axes=0:16}", optimizer="adamw")  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(parameters(program))
    grown, _ = with_stage(program)
    with pytest.raises(InputError, match="cannot train stage: no lift produces this parameter"):
        repoint(optimizer, program, grown, [])
    wrong = Lift((TensorLift("0.weight", "0.weight"),))
    train(program, optimizer, 1)
    large = progc.apply(program, "grow-width{axes=0:16}")
    with pytest.raises(InputError, match=r"`exp_avg` of 0.bias: expected shape \[16\], found \[8\]; map it"):
        repoint(optimizer, program, large, [wrong])
