"""Samples that are not finite: what a skipped step leaves, what the summary says, and networks that stop computing."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import progc
from progc.checkpoints import latest
from progc.data.finite import odd_outputs
from progc.data.task import Task, cross_entropy
from progc.errors import CheckError
from progc.ir.writes import written_buffers
from progc.train.buffers import StepBuffers
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.stepping import Guard, Stepper
from progc.train.trainer import Result, Trainer

BATCH, COUNT, BAD = 8, 40, 17
"""Samples of a step and of the data set, and the one that is not finite."""


class ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x.relu()))


class ConvNet(nn.Module):
    """A small residual network; its stem has running statistics too, so one bad pixel reaches all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6))
        self.blocks = nn.Sequential(*(ConvBlock(6) for _ in range(2)))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class TanhBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


class Centred(nn.Module):
    """Subtracts a running mean of the logarithm of its inputs, if `late` in eval mode only."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.blocks = nn.Sequential(TanhBlock(), TanhBlock())
        self.head = nn.Linear(16, 3)
        self.register_buffer("centre", torch.zeros(16))
        self.register_buffer("unused", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            self.centre.mul_(0.9).add_(0.1 * x.abs().log().mean(0))
        if not self.training or not self.late:
            x = x - self.centre
        return self.head(self.blocks(x))


def data(bad: float | None = math.nan, count: int = COUNT) -> Any:
    generator = torch.Generator().manual_seed(0)
    images, labels = 1 + torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % 3
    if bad is not None:
        images[BAD] = bad
    return torch.utils.data.TensorDataset(images, labels)


@functools.cache
def program(kind: str) -> progc.Program:
    torch.manual_seed(0)
    net = {"running statistics": ConvNet, "a buffer of one's own": Centred, "late": lambda: Centred(late=True)}[kind]()
    return progc.capture(net, (torch.rand(4, 1, 4, 4),))


def train(run: Path, kind: str, samples: Any, *, fused: bool = False, **more: Any) -> Result:
    """Two stages of one epoch each."""
    validation = more.pop("validation", None)
    full = program(kind)
    schedule = progc.plan(full, stages=2, total=2, depths="1,2", regularise=False, resolutions="none")
    settings = Settings(batch=BATCH, compile="eager", ema=(0.9,), seed=1, **{"nan": "skip", "log_every": 100, **more})
    return Trainer(
        schedule, program=full, task=Task(samples, validation=validation), run=run, settings=settings,
        optimizer=lambda module: torch.optim.AdamW(module.parameters(), lr=1e-3, fused=fused),
    ).fit()  # fmt: skip


KINDS = ("running statistics", "a buffer of one's own")


@pytest.mark.parametrize("fused", [True, False], ids=["on the device", "on the host"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_that_is_not_finite_does_no_damage(tmp_path: Path, kind: str, fused: bool) -> None:
    """One step of each of two epochs is skipped; weights, buffers and averages are finite to the end."""
    result = train(tmp_path, kind, data(), fused=fused, validation=data(None, 20))
    assert result.finished and all(math.isfinite(value) for value in result.metrics.values())
    for path in ("model.safetensors", "model-ema-0.9.safetensors"):
        assert [name for name, value in load_file(tmp_path / path).items() if not value.isfinite().all()] == []
    assert (result.skipped, result.skipped_samples, len(result.skipped_at)) == (2, 2 * BATCH, 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    notes = {line["step"]: line["samples"] for line in lines if line["kind"] == "note"}
    assert tuple(notes) == result.skipped_at
    assert all(len(own) == BATCH and BAD in own for own in notes.values())


@pytest.mark.parametrize("fused", [True, False], ids=["on the device", "on the host"])
@pytest.mark.parametrize("nan", ["skip", "stop"])
def test_buffers_are_as_before_a_skipped_step(fused: bool, nan: Any) -> None:
    """In two micro-batches of which the second one is bad; steps before and after move them."""
    module = ConvNet().train()
    settings = Settings(batch=8, nan=nan, accumulate=2)
    optimizer = torch.optim.AdamW(module.parameters(), fused=fused)
    own = Stepper(
        module, Task(data()), lambda _: {}, optimizer, Single(torch.device("cpu")),
        torch.amp.GradScaler("cpu", enabled=False), Guard(settings), settings,
    )  # fmt: skip
    good, bad = data(None)[:4], data()[BAD - 2 : BAD + 2]

    def buffers() -> list[Tensor]:
        return [buffer.clone() for buffer in module.buffers()]

    first = buffers()
    own.step([good, good])
    before = buffers()
    assert not any(map(torch.equal, first, before))
    if nan == "stop" and not fused:
        with pytest.raises(CheckError, match="not finite"):
            own.step([good, bad])
    else:
        own.step([good, bad])
    assert all(map(torch.equal, before, buffers()))
    if nan == "skip":
        own.step([good, good])
        assert not any(map(torch.equal, before, buffers()))


def test_only_what_a_step_may_write_is_kept() -> None:
    """Through a view, a running statistic, and an operation of one's own; constants are left out."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("seen", torch.zeros(2, 4))
            self.register_buffer("table", torch.ones(4))
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen[0].add_(x.detach().mean(0))
            return self.linear(self.norm(x)) * self.table

    found = written_buffers(progc.capture(Views(), (torch.randn(3, 4),)))
    assert found == {"seen", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert written_buffers(program("a buffer of one's own")) == {"centre"}


def test_a_buffer_of_each_dtype_is_put_back() -> None:
    held = [torch.zeros(3), torch.zeros((), dtype=torch.int64), torch.zeros(2, dtype=torch.bool), torch.zeros(0)]
    own = StepBuffers([*held, held[0]])
    for left_out, expected in ((None, 0.0), (torch.tensor(1.0), 0.0), (torch.tensor(0.0), 1.0)):
        own.keep()
        for buffer in held:
            buffer.fill_(1)
        held[0][1] = math.nan if left_out is None or left_out else 1.0
        own.restore(left_out)
        assert all(bool((buffer == expected).all()) for buffer in held)


# --- networks that compute nothing finite any more ------------------------------------------------------------------


def test_a_validation_ends_the_run(tmp_path: Path) -> None:
    """The loss of every step is finite: what is not is used in eval mode only."""
    with pytest.raises(CheckError, match=r"^step 2: outputs of the network .* not finite .*, and so is centre; lower"):
        train(tmp_path, "late", data(0.0, BATCH * 2 + 4), validation=data(None, 20), validate_every=2)
    assert not (tmp_path / "model.safetensors").exists() and latest(tmp_path) is None


@pytest.mark.parametrize("stages", [2, 1], ids=["a boundary", "the end"])
def test_a_boundary_and_the_end_end_the_run(tmp_path: Path, stages: int) -> None:
    full = program("late")
    schedule = progc.plan(full, stages=stages, total=2, depths="1,2", regularise=False, resolutions="none")
    settings = Settings(batch=BATCH, compile="eager", save_every=1, seed=1)
    samples = data(0.0)
    own = Trainer(schedule, program=full, task=Task(samples), run=tmp_path, settings=settings)
    with pytest.raises(CheckError, match=f"^step {10 // stages}: outputs of the network in eval mode are not finite"):
        own.fit()
    assert not (tmp_path / "model.safetensors").exists()


def test_averaged_weights_are_looked_at_too(tmp_path: Path) -> None:
    class Poisoned(progc.EMA):
        def update(self, *args: Any, **more: Any) -> None:
            super().update(*args, **more)
            self.tensors[0.9]["head.bias"].fill_(math.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("progc.train.trainer.Averages", Poisoned)
        with pytest.raises(CheckError, match=r"outputs of the averaged weights 0\.9 .* and so is head\.bias"):
            train(tmp_path, "running statistics", data(None))


def infinite(value: float) -> Callable[[], tuple[Any, Tensor]]:
    return lambda: ({"logits": torch.tensor([0.0, value])}, torch.tensor(1.0))


def test_a_masked_logit_is_no_damage() -> None:
    outputs, loss = infinite(-math.inf)()
    assert not odd_outputs(outputs, loss) and odd_outputs(outputs, loss * math.nan)
    assert odd_outputs(infinite(math.nan)()[0], loss)
    assert not odd_outputs((torch.ones(2), "text", torch.arange(3)), loss * math.nan)
    assert not odd_outputs(torch.arange(3), loss) and not odd_outputs(None, loss)


def test_a_run_with_masked_logits_finishes(tmp_path: Path) -> None:
    class Masked(Centred):
        def forward(self, x: Tensor) -> Tensor:
            hidden = super().forward(x)
            return torch.cat([hidden, torch.full_like(hidden[:, :1], -math.inf)], 1)

    full = progc.capture(Masked(), (torch.rand(4, 1, 4, 4),))
    schedule = progc.plan(full, stages=1, total=1)
    task = Task(data(None), cross_entropy, validation=data(None, 20))
    settings = Settings(batch=BATCH, compile="eager")
    assert Trainer(schedule, program=full, task=task, run=tmp_path, settings=settings).fit().finished
