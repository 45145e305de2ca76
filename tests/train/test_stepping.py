"""One optimizer step in fp16, whose gradients are scaled: what does not fit into 16 bits is left out and noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from progc.data.task import Task
from progc.errors import CheckError
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.stepping import Guard, Stepper
from tests.train.running import BATCH, STEPS, lines, outcome, samples, trainer

CPU = torch.device("cpu")
NOTE = "the gradient scale is halved"


class Spoiled(torch.autograd.Function):
    """The identity, with a gradient that does not fit into 16 bits."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float("inf")


def stepper(scale: float = 64.0, amp: str = "fp16") -> tuple[Stepper, nn.Module, list[str]]:
    """A small network with momentum and weight decay, which move weights without a gradient, too."""
    torch.manual_seed(0)
    spoil: list[str] = []

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        value = nn.functional.cross_entropy(outputs.float(), batch[1])
        if spoil == ["loss"]:
            return value * float("nan")
        return Spoiled.apply(value) if spoil else value

    net, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), samples(BATCH)
    settings = Settings(batch=BATCH, amp=amp, clip=1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=amp == "fp16")
    made = Stepper(
        net, Task(data, loss), lambda _: {}, optimizer, Single(CPU), scaler, Guard(settings), settings
    )  # fmt: skip
    return made, net, spoil


def batch(*places: int) -> list[Any]:
    """The samples in two micro-batches, or divided at the places given."""
    return list(zip(*(tensor.tensor_split(places or 2) for tensor in samples(BATCH).tensors), strict=True))


def state(made: Stepper, net: nn.Module) -> list[torch.Tensor]:
    """Weights and momentum, copied."""
    kept = [entry["momentum_buffer"] for entry in made.optimizer.state.values()]
    return [tensor.detach().clone() for tensor in (*net.parameters(), *kept)]


def test_an_overflow_changes_nothing_but_the_scale() -> None:
    made, net, spoil = stepper()
    assert made.step(batch()).skipped is None
    before = state(made, net)
    spoil.append("gradient")
    out = made.step(batch())
    assert out.skipped == NOTE and out.loss == out.loss and not torch.isfinite(torch.tensor(out.norm))
    assert all(map(torch.equal, before, state(made, net))) and len(before) == 4
    assert made.scaler.get_scale() == 32.0
    spoil.clear()
    assert made.step(batch()).skipped is None
    assert not any(map(torch.equal, before, state(made, net)))
    assert made.scaler.get_scale() == 32.0


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    """A smaller scale would not mend it: the guard decides, and the resumed run keeps the scale."""
    made, net, spoil = stepper()
    made.step(batch())
    before = state(made, net)
    spoil.append("loss")
    with pytest.raises(CheckError, match="the loss is not finite"):
        made.step(batch())
    assert all(map(torch.equal, before, state(made, net)))


def test_the_step_does_not_depend_on_the_scale() -> None:
    """Unscaled before the norm is taken and clipped."""
    ends = []
    for scale in (64.0, 1024.0):
        made, net, _ = stepper(scale)
        out = made.step(batch())
        ends.append((out.norm, state(made, net)))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-2) and ends[0][0] > 0.1
    assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def test_every_sample_counts_once_whatever_the_micro_batches() -> None:
    ends = []
    for places in ((BATCH,), (2,), (5, 6)):
        made, net, _ = stepper(amp="none")
        micro_batches = [micro for micro in batch(*places) if len(micro[1])]
        out = made.step(micro_batches)
        ends.append((out.loss, out.norm, *state(made, net)))
    for loss, norm, *tensors in ends[1:]:
        assert (loss, norm) == (pytest.approx(ends[0][0]), pytest.approx(ends[0][1]))
        torch.testing.assert_close(tensors, ends[0][2:])


def test_a_run_in_fp16_goes_on_with_its_scale(tmp_path: Path) -> None:
    """The step after the first one overflows; how many good steps came since is part of the scaler's state."""

    def run(name: str, dies_at: int | None) -> dict[str, Any]:
        made, take = trainer(tmp_path / name, amp="fp16", log_every=1), Stepper.step
        made.scaler.set_growth_interval(STEPS)

        def step(self: Stepper, micro_batches: Any) -> Any:
            if made.step == dies_at:
                raise KeyboardInterrupt
            if made.step != 1:
                return take(self, micro_batches)
            spoiling = self.trained[0].register_hook(lambda gradient: gradient * float("inf"))
            try:
                return take(self, micro_batches)
            finally:
                spoiling.remove()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "step", step)
            made.fit()
        return made.scaler.state_dict()

    expected = run("whole", None)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", STEPS)
    assert run("stopped", None) == expected
    told = lines(tmp_path / "whole")
    assert 2 in [line["step"] for line in told if line.get("skipped") == NOTE]
    assert lines(tmp_path / "stopped") == told
    whole, stopped = (outcome(tmp_path / name) for name in ("whole", "stopped"))
    assert [name for name in whole if not torch.equal(whole[name], stopped[name])] == []
