"""Steps that are left out on the device: fused optimizers on a CPU, where the result can be looked at."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from progc.checkpoints import latest, load
from progc.data.task import Task, cross_entropy
from progc.errors import CheckError
from progc.lift.averages import Averages
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.skipping import can_skip, fused_options, step_unless
from progc.train.stepping import LONGEST, Guard, Outcome, Stepper
from progc.train.trainer import Trainer
from tests.fake_cuda import CUDA, fake_cuda
from tests.train.running import BATCH, Interrupted, lines, outcome, program, samples, schedule, trainer

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
}
FUSED = {"optimizer": lambda module: torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of weights and state."""
    kept = [value for own in optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in (*module.parameters(), *kept)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


# --- the optimizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 2], ids=["the first step", "a later step"])
def test_a_step_that_is_left_out_changes_nothing_at_all(name: str, before: int) -> None:
    """And the steps after it are those of a run without it."""

    def run(leave_out: bool) -> list[list[Tensor]]:
        module = net()
        optimizer = OPTIMIZERS[name](module.parameters())
        assert can_skip(optimizer)
        states = []
        for step in range(5):
            bad = step == before
            if bad and not leave_out:
                continue
            images, labels = samples(BATCH).tensors
            cross_entropy(module(images + step), (images, labels)).backward()
            for parameter in module.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(math.nan if bad else 1.0)
            start = everything(module, optimizer)
            step_unless(optimizer, torch.tensor(float(bad)))
            optimizer.zero_grad()
            if bad and before:
                assert same(start, everything(module, optimizer))
            if not bad:
                assert not torch.equal(start[0], everything(module, optimizer)[0])
                states.append(everything(module, optimizer))
        assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")
        return states

    first, second = run(True), run(False)
    assert len(first) == 4 and all(map(same, first, second))


def test_torch_alone_loses_the_momentum_of_a_first_step_that_is_left_out() -> None:
    """Why `can_skip` begins with zeros: torch takes what happened to be in memory for the momentum."""
    module = net()
    optimizer = OPTIMIZERS["momentum"](module.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, 7.0))  # what was in memory
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        step_unless(optimizer, torch.tensor(1.0))
    assert all(bool((own["momentum_buffer"] == 7.0).all()) for own in optimizer.state.values())


def test_optimizers_without_the_flag_are_known() -> None:
    parameters = list(net().parameters())
    assert not can_skip(torch.optim.AdamW(parameters))
    assert not can_skip(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    assert not can_skip(torch.optim.Adam(parameters, foreach=True))
    # Its first step is not that of zeros.
    assert not can_skip(torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5, fused=True))
    mixed = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "fused": False}], fused=True)
    assert not can_skip(mixed)


def test_state_of_another_layout_is_laid_out_as_its_parameter() -> None:
    """As growth may leave it; the fused kernel refuses it, or computes with the wrong entries."""
    module = net()
    optimizer = OPTIMIZERS["adamw"](module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    weight, own = module[1].weight, optimizer.state[module[1].weight]
    own["exp_avg"] = own["exp_avg"].t().contiguous().t()
    assert own["exp_avg"].stride() != weight.stride()
    assert can_skip(optimizer)
    assert own["exp_avg"].stride() == weight.stride()
    assert torch.equal(own["exp_avg"], next(iter(twin.state.values()))["exp_avg"])


def test_counts_are_moved_to_the_device_of_the_parameter() -> None:
    with fake_cuda(waits=True):  # once for a stage
        weight = nn.Parameter(torch.empty(3, 2, device=CUDA))
        optimizer = torch.optim.AdamW([weight], fused=True)
        optimizer.state[weight] = {
            "step": torch.tensor(4.0), "exp_avg": torch.empty(3, 2, device=CUDA),
            "exp_avg_sq": torch.empty(3, 2, device=CUDA),
        }  # fmt: skip
        assert can_skip(optimizer)
        assert optimizer.state[weight]["step"].device == CUDA


def test_optimizers_are_fused_on_a_gpu_alone() -> None:
    assert fused_options(net(), {}) == {}
    with fake_cuda():
        module = nn.Linear(2, 2, device=CUDA)
        assert fused_options(module, {"betas": (0.9, 0.95)}) == {"fused": True}
        assert fused_options(module, {"momentum": 0.9}) == {"fused": True}
        assert fused_options(module, {"momentum": 0.9}, sharded=True) == {}
        assert fused_options(module, {"momentum": 0.9, "dampening": 0.1}) == {}
        for own in ("foreach", "fused", "capturable", "differentiable"):
            assert fused_options(module, {own: False}) == {}
        assert fused_options(nn.Linear(2, 2, device=CUDA, dtype=torch.complex64), {}) == {}


# --- the step -------------------------------------------------------------------------------------------------------


def stepper(loss: Any = cross_entropy, kind: str = "adamw", **more: Any) -> tuple[Stepper, nn.Module]:
    module, settings = net(), Settings(batch=BATCH, clip=1.0, **more)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=settings.amp == "fp16")
    made = Stepper(
        module, Task(samples(BATCH), loss), lambda _: {}, OPTIMIZERS[kind](module.parameters()), Single(CPU), scaler,
        Guard(settings), settings,
    )  # fmt: skip
    return made, module


def batch() -> list[Any]:
    return list(zip(*(tensor.tensor_split(2) for tensor in samples(BATCH).tensors), strict=True))


def failing(*steps: int) -> Callable[[Any, Any], Tensor]:
    """A loss that is not a number in these steps, of two micro-batches each."""
    calls = [0]

    def loss(outputs: Any, batch: Any) -> Tensor:
        calls[0] += 1
        value = cross_entropy(outputs.float(), batch)
        return value * math.nan if (calls[0] + 1) // 2 in steps else value

    return loss


def test_values_wait_until_one_of_them_is_read() -> None:
    """They are those of a stepper that reads every step: looking for spikes makes it do so, and finds none here."""
    made, module = stepper(failing(3), nan="skip")
    other, twin = stepper(failing(3), nan="skip", spike=1e9)
    outcomes = [(made.step(batch()), other.step(batch())) for _ in range(5)]
    assert len(made.waiting) == 5 and not other.waiting
    assert all(first.left_out is not None and second.left_out is None for first, second in outcomes)
    found = [[(o.loss, o.norm, o.skipped, o.samples) for o in side] for side in zip(*outcomes, strict=True)]
    assert str(found[0]) == str(found[1]) and [o[2] is None for o in found[0]] == [True, True, False, True, True]
    assert not made.waiting and same(everything(module, made.optimizer), everything(twin, other.optimizer))
    assert made.guard.state_dict()["skipped"] == other.guard.state_dict()["skipped"] == 0


def test_nothing_changes_after_a_loss_that_is_not_finite() -> None:
    """The host learns of it later, and the steps that it took in the meantime changed nothing either."""
    made, module = stepper(failing(3))
    outcomes = [made.step(batch()) for _ in range(2)]
    before = everything(module, made.optimizer)
    outcomes += [made.step(batch()) for _ in range(4)]
    assert same(before, everything(module, made.optimizer))
    assert [float(o.left_out) for o in outcomes if o.left_out is not None] == [0, 0, 1, 1, 1, 1]
    assert outcomes[1].skipped is None  # asked for a step, the guard judges those up to it
    with pytest.raises(CheckError, match=r"the loss is not finite \(nan\); the weights were not changed"):
        outcomes[5].loss  # noqa: B018


def test_the_host_looks_soon() -> None:
    made, _ = stepper(failing(3))
    for _ in range(LONGEST):
        made.step(batch())
    assert made.full
    with pytest.raises(CheckError, match="not finite"):
        made.step(batch())


@pytest.mark.parametrize("spike", [None, 1e9], ids=["later", "at once"])
def test_too_many_steps_in_a_row_end_the_run_at_the_same_step(spike: float | None) -> None:
    made, _ = stepper(failing(2, 4, 5, 6), nan="skip", max_skipped=2, spike=spike)
    taken: list[Outcome] = []
    with pytest.raises(CheckError, match="3 steps in a row"):
        while len(taken) < 20:
            taken.append(made.step(batch()))
            if made.full:
                made.read()
    assert len(taken) in (5, 6)  # the step that ends it is returned where its values come later


class Overflow(torch.autograd.Function):
    """The identity, with a gradient that does not fit into 16 bits."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.inf


def overflowing(step: int) -> Callable[[Any, Any], Tensor]:
    calls = [0]

    def loss(outputs: Any, batch: Any) -> Tensor:
        calls[0] += 1
        value = cross_entropy(outputs.float(), batch)
        return Overflow.apply(value) if (calls[0] + 1) // 2 == step else value

    return loss


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_gradient_scale_that_is_too_large_is_halved(kind: str) -> None:
    """With nan=stop, too: the loss is finite, so the next step is taken."""
    made, module = stepper(overflowing(2), kind, amp="fp16")
    outcomes = [made.step(batch())]
    before = everything(module, made.optimizer)
    outcomes.append(made.step(batch()))
    assert same(before, everything(module, made.optimizer)) and made.scaler.get_scale() == 32.0
    outcomes.append(made.step(batch()))
    assert not torch.equal(before[0], everything(module, made.optimizer)[0])
    assert [o.skipped for o in outcomes] == [None, "the gradient scale is halved", None]


def test_in_fp16_a_loss_that_is_not_finite_ends_the_run() -> None:
    made, module = stepper(failing(2), amp="fp16")
    made.step(batch())
    before = everything(module, made.optimizer)
    last = [made.step(batch()) for _ in range(3)][-1]
    assert same(before, everything(module, made.optimizer))
    with pytest.raises(CheckError, match="the loss is not finite"):
        last.loss  # noqa: B018


# --- the run --------------------------------------------------------------------------------------------------------


def test_a_run_resumes_bit_for_bit_and_writes_the_same_metrics(tmp_path: Path) -> None:
    """Values are read every five steps, at saves, validations and boundaries; the run is stopped in between."""
    more: dict[str, Any] = {**FUSED, "log_every": 5, "save_every": None, "validate_every": 7}
    assert trainer(tmp_path / "whole", **more).fit().finished
    data = Interrupted(samples(72), 4 * BATCH, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = trainer(tmp_path / "again", data, **more)
    assert stopped.fit().step == 4
    assert trainer(tmp_path / "again", **more).fit().finished
    expected, found = outcome(tmp_path / "whole"), outcome(tmp_path / "again")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert lines(tmp_path / "whole") == lines(tmp_path / "again")


def test_metrics_do_not_depend_on_when_values_are_read(tmp_path: Path) -> None:
    """Notes of skipped steps stand before the line of metrics that counts them."""
    told = []
    for name, spike in (("later", None), ("at once", 1e9)):
        settings = Settings(batch=BATCH, compile="eager", nan="skip", log_every=3, spike=spike, seed=1)
        task = Task(samples(72), failing_once())
        own = Trainer(schedule(), program=program(), task=task, run=tmp_path / name, settings=settings, **FUSED)
        assert own.fit().finished
        told.append(lines(tmp_path / name))
    assert [line for line in told[0] if line["kind"] == "note"] and told[0] == told[1]
    first, second = (outcome(tmp_path / name) for name in ("later", "at once"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def failing_once() -> Callable[[Any, Any], Tensor]:
    calls = [0]

    def loss(outputs: Any, batch: Any) -> Tensor:
        calls[0] += 1
        value = cross_entropy(outputs, batch)
        return value * math.nan if calls[0] == 2 and outputs.requires_grad else value

    return loss


@pytest.mark.parametrize("more", [FUSED, {}], ids=["on the device", "on the host"])
def test_averages_stand_still_in_a_step_that_is_left_out(tmp_path: Path, more: dict[str, Any]) -> None:
    seen = []

    class Watching(Averages):
        def update(self, source: Any, *, unless: Tensor | None = None) -> None:
            before = self.tensors[0.9]["head.bias"].clone()
            super().update(source, unless=unless)
            seen.append(not torch.equal(before, self.tensors[0.9]["head.bias"]))

    settings = Settings(batch=BATCH, compile="eager", nan="skip", ema=(0.9,), seed=1, log_every=100)
    data = Interrupted(samples(72), 3 * BATCH, lambda: os.kill(os.getpid(), signal.SIGTERM))
    own = Trainer(
        schedule(), program=program(), task=Task(data, failing_once()), run=tmp_path, settings=settings, **more
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("progc.train.trainer.Averages", Watching)
        assert own.fit().step == 3
    assert own.active is not None and own.active.running.ema.num_updates == 2 and own.seen.skipped == 1
    assert seen == ([True, False, True] if more else [True, True])


def test_a_run_that_fails_says_where_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    calls: list[int] = []

    def loss(outputs: Any, batch: Any) -> Tensor:
        calls.append(1)
        return cross_entropy(outputs, batch) * (math.nan if len(calls) == 2 else 1.0)

    settings = Settings(batch=BATCH, compile="eager", seed=1, ema=(0.9,), log_every=100)
    own = Trainer(schedule(), program=program(), task=Task(samples(72), loss), run=tmp_path, settings=settings, **FUSED)
    with pytest.raises(CheckError, match="^step 2: the loss is not finite"):
        own.fit()
    assert own.step == 3  # the boundary needs the values
    assert latest(tmp_path) is None and own.active is not None
    assert own.active.running.ema.num_updates == 1
    settings = Settings(batch=BATCH, compile="eager", seed=1, ema=(0.9,), save_every=1)
    calls.clear()
    own = Trainer(schedule(), program=program(), task=Task(samples(72), loss), run=tmp_path, settings=settings, **FUSED)
    with pytest.raises(CheckError, match="^step 2: "):
        own.fit()
    found = latest(tmp_path)
    assert found is not None and load(found).manifest.step == 1 and own.active is not None
    now = own.active.module.state_dict()
    assert all(torch.equal(now[name], value) for name, value in load(found).weights().items())
