"""Corrected rates: a grown network in training is the small one in training, to rounding (docs/growth.md 3.3)."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.optim.lion import Lion

import progc
from progc.errors import InputError
from progc.ir.program import Program
from progc.lift.optimizers import apply_corrections, repoint
from progc.lift.rates import RateFactors, corrections
from progc.passes.grow_width import GrowWidth
from progc.pipeline.manager import run
from tests.lift.optimizers.running import Make, fresh, names_of, parameters, train, twin, with_trained

OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, eps=1e-6),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.01, eps=1e-6),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, eps=1e-6),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
}
ROUNDING = 1e-10
"""Float64 after 100 steps: two widths sum in different orders. A wrong learning rate gives 1e-4."""
CASES = [(name, kind) for name in ("mlp", "lm", "einsum", "flat", "conv") for kind in ("adamw", "sgd")]
CASES += [("mlp", "adam"), ("mlp", "rmsprop"), ("mlp", "adafactor"), ("einsum", "adafactor")]


def widened(source: Program) -> str:
    """Everything twice; queries that are packed with keys and values keep their head dim: one rate is not exact."""
    axes = [f"{axis.name}:{2 * axis.size}" for axis in source.axes.growable if "attention.head_dim" not in axis.name]
    return f"grow-width{{axes={','.join(axes)} noise=0.0}}"


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_100_steps_small_are_100_steps_grown(name: str, kind: str) -> None:
    """20 steps, growth by two with equal shares, 100 more: transformers, a mixer, a convolutional network."""
    program = fresh(name)
    optimizer = OPTIMIZERS[kind](parameters(program))
    train(program, optimizer, 20)
    small, small_optimizer = twin(program, optimizer, OPTIMIZERS[kind])
    start = {key: tensor.detach().clone() for key, tensor in small.tensors.items()}
    large = progc.apply(program, widened(program), optimizer=optimizer, correct_rates=True)
    difference = train(large, optimizer, 100) - train(small, small_optimizer, 100)
    assert difference.abs().max() < ROUNDING
    lift = run(small, widened(small))[1][0].lift
    assert lift is not None
    moved = max(float((start[key] - tensor).abs().max().detach()) for key, tensor in small.tensors.items())
    assert moved > 0.01
    for key, expected in lift.apply(small.tensors).items():
        assert (large.tensors[key] - expected).abs().max() < ROUNDING, key


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_same_through_grow(kind: str) -> None:
    """`progc.grow(program, width=2, optimizer=opt)` with equal shares."""
    program = fresh("lm")
    optimizer = OPTIMIZERS[kind](parameters(program))
    train(program, optimizer, 20)
    small, small_optimizer = twin(program, optimizer, OPTIMIZERS[kind])
    large = progc.grow(program, width=2, noise=0.0, optimizer=optimizer, correct_rates=True)
    assert large.num_parameters() > 1.9 * small.num_parameters()
    assert (train(large, optimizer, 100) - train(small, small_optimizer, 100)).abs().max() < ROUNDING


def test_what_goes_wrong_without() -> None:
    """The same rates everywhere, and a fresh state at the right rates: both leave the small network's way."""
    apart = {}
    for case in ("same rates", "fresh state"):
        program = fresh("mlp")
        optimizer = OPTIMIZERS["adamw"](parameters(program))
        train(program, optimizer, 20)
        small, small_optimizer = twin(program, optimizer, OPTIMIZERS["adamw"])
        correct = case != "same rates"
        large = progc.apply(program, widened(program), optimizer=optimizer, correct_rates=correct)
        if correct:
            optimizer.state.clear()
        apart[case] = float((train(large, optimizer, 10) - train(small, small_optimizer, 10)).abs().max())
    assert all(distance > 1e-3 for distance in apart.values()), apart


def test_lion_follows_too() -> None:
    """Its update is a sign: no eps hides rounding, so few steps, away from gradients of zero."""
    program = fresh("mlp")
    optimizer = Lion(parameters(program), lr=1e-4, weight_decay=0.1)
    train(program, optimizer, 5)
    small, again = twin(program, optimizer, lambda p: Lion(p, lr=1e-4, weight_decay=0.1))
    large = progc.apply(program, widened(program), optimizer=optimizer, correct_rates=True)
    assert (train(large, optimizer, 20) - train(small, again, 20)).abs().max() < ROUNDING


def test_factors_multiply_over_steps() -> None:
    program = fresh("flat")
    _, results = run(program, "grow-width{mlp=*2},grow-depth{to=*2},grow-width{mlp=*2}")
    lifts = [result.lift for result in results if result.lift is not None]
    found = corrections(lifts)
    assert found["w2_0"].lr == 0.25 and found["w2_0"].weight_decay == 4.0 and found["w2_0"].exact
    # Block 1 is an inserted copy of block 0; it has the width of its source, and no past.
    assert found["w2_1"].lr == 0.25 and not found["w2_1"].exact
    assert "head_w" not in found
    assert RateFactors(0.5, 2.0, 2.0, 0.25).then(RateFactors(0.5, 3.0, 2.0, 0.5, False)) == RateFactors(
        0.25, 6.0, 4.0, 0.125, False
    )


def test_groups_are_split_and_keep_their_options() -> None:
    program = fresh("mlp")
    decay = {"params": parameters(program, ["0.weight", "2.weight", "4.weight"]), "lr_scale": 0.5, "initial_lr": 2e-3}
    rest = {"params": parameters(program, ["0.bias", "2.bias", "4.bias"]), "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decay, rest], lr=1e-3, eps=1e-6, weight_decay=0.2)
    large, (result,) = run(program, [GrowWidth(axes=("0:16",))])
    assert result.lift is not None
    apart = progc.apply(program, [GrowWidth(axes=("0:16",))], optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3]
    apply_corrections(optimizer, apart, corrections([result.lift]))
    assert names_of(optimizer, apart) == [["4.weight"], ["2.bias", "4.bias"], ["0.weight"], ["2.weight"], ["0.bias"]]
    chosen = [
        [g[k] for k in ("lr", "weight_decay", "eps", "lr_scale")] for g in optimizer.param_groups if "lr_scale" in g
    ]
    assert chosen == [[1e-3, 0.2, 1e-6, 0.5], [1e-3, 0.2, 5e-7, 0.5], [5e-4, 0.4, 1e-6, 0.5]]
    assert [group.get("initial_lr") for group in optimizer.param_groups] == [2e-3, None, 2e-3, 1e-3, None]
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)
    assert large.num_parameters() == apart.num_parameters()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)  # created after the growth
    train(apart, optimizer, 2)


def test_optimizers_of_unknown_rule() -> None:
    program = fresh("mlp")
    matrices = [tensor for tensor in parameters(program) if tensor.dim() == 2]
    muon = torch.optim.Muon(matrices)
    with pytest.raises(
        InputError, match="no rule is known for Muon other than adjust_lr_fn='spectral_unclamped'; pass"
    ):
        progc.apply(program, "grow-width{axes=0:16}", optimizer=muon, correct_rates=True)
    assert names_of(muon, program) == [["0.weight", "2.weight", "4.weight"]]
    spectral = torch.optim.Muon(matrices, adjust_lr_fn="spectral_unclamped")
    progc.apply(program, "grow-width{axes=0:16}", optimizer=spectral, correct_rates=True)
    assert [group["lr"] for group in spectral.param_groups] == [1e-3]
    other = torch.optim.ASGD(parameters(program))
    with pytest.raises(InputError, match="no rule is known for ASGD"):
        apply_corrections(other, program, {"0.weight": RateFactors(lr=0.5)})
    apply_corrections(other, program, {"0.weight": RateFactors(lr_sgd=0.5)}, rule="sgd")
    assert sorted(group["lr"] for group in other.param_groups) == [0.005, 0.01]


@pytest.mark.parametrize("name", ["mlp", "lm", "flat"])
def test_muon_keeps_its_way(name: str) -> None:
    """It computes in bfloat16, so the ways differ by that; the tied embedding needs twice the rate."""
    program = fresh(name)

    def build(source: Program) -> list[torch.optim.Optimizer]:
        matrices = [tensor for tensor in parameters(source) if tensor.dim() == 2]
        rest = [tensor for tensor in parameters(source) if tensor.dim() != 2]
        muon = torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="spectral_unclamped")
        return [muon, torch.optim.AdamW(rest, lr=1e-3, eps=1e-6)]

    optimizers = build(program)
    train(program, optimizers, 20)
    small = fresh(program)
    twins = build(small)
    for one, other in zip(twins, optimizers, strict=True):
        one.load_state_dict(copy.deepcopy(other.state_dict()))
    start = train(small, [], 1)
    large = progc.apply(program, widened(program), optimizer=optimizers, correct_rates=True)
    end = train(small, twins, 50)
    assert (train(large, optimizers, 50) - end).norm() < 5e-3 * (end - start).norm()
    rates = {group["lr"] for group in optimizers[0].param_groups}
    assert rates == {1e-3} or (name == "lm" and 2e-3 in rates)


def test_corrections_without_an_optimizer() -> None:
    program = fresh("mlp")
    for grow in (
        lambda: progc.grow(program, "0=16", correct_rates=True),
        lambda: progc.apply(program, "", correct_rates=True),
    ):
        with pytest.raises(InputError, match="correct_rates=True requires an optimizer: pass optimizer="):
            grow()


def test_frozen_parameters_come_back_to_the_group_of_their_rate() -> None:
    program = fresh("mlp")
    optimizer = torch.optim.AdamW(parameters(program), lr=1e-3)
    train(program, optimizer, 2)
    frozen = with_trained(program, lambda name: name != "2.weight")
    repoint(optimizer, program, frozen, [])
    large = progc.apply(frozen, "grow-width{axes=0:16,2:20 noise=0.0}", optimizer=optimizer, correct_rates=True)
    back = with_trained(large, lambda name: True)
    repoint(optimizer, large, back, [])
    (group,) = [group for group in optimizer.param_groups if any(t.shape == (20, 16) for t in group["params"])]
    assert (group["lr"], group["weight_decay"]) == (5e-4, 2e-2)
    assert sorted(sum(names_of(optimizer, back), [])) == sorted(name for name, _ in back.parameters())
