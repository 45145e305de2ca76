"""A step on a GPU never makes the host wait for it: shown on a fake device, where everything that would wait raises."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.data.task import Task, cross_entropy
from progc.ir.module import ProgramModule
from progc.lift.averages import Averages
from progc.schedule import Schedule
from progc.schedule.running import RunningStage
from progc.search.online import SupernetStage
from progc.search.supernet import Supernet
from progc.search.supernet_module import SupernetModule
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.stepping import Active
from progc.train.trainer import Trainer
from tests.fake_cuda import CUDA, all_on_cuda, fake_cuda, refused
from tests.train.running import BATCH, program, samples, trainer

QUIET: dict[str, Any] = {"log_every": 100, "save_every": None, "validate_every": None, "accumulate": 2}
LONG = 4
"""Steps; the stage itself would be over after three of them."""
SEARCH = 8
"""Steps of a search: one for each of its candidates."""


class Done(Exception):
    """Ends a run in the middle."""


def batches() -> list[Any]:
    images = torch.empty(BATCH // 2, 1, 8, 8, device=CUDA)
    return [[images, torch.empty(BATCH // 2, dtype=torch.int64, device=CUDA)] for _ in range(2)]


def on_fake_device(own: Trainer, check: Callable[[Trainer, Active], None]) -> None:
    """Begins a run, makes its first stage again on the fake device, and calls `check` with it."""

    def train(self: Trainer, active: Active) -> bool:
        with fake_cuda():
            self.parallel = self.watch.parallel = Single(CUDA)
            self.scaler = torch.amp.GradScaler("cuda", enabled=self.settings.amp == "fp16")
            running, ema = active.running, self.settings.ema
            program = running.program.replace(tensors=all_on_cuda(running.program.tensors))
            module = ProgramModule(program).train()
            module.__dict__["to"] = lambda device: module  # it is there, and torch cannot move fake parameters
            held = self._make_optimizer(module), Averages(module, ema)
            check(
                self, self._entered(RunningStage(running.stage, program, module, (0, LONG + 1), held, (), None, None))
            )
        raise Done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train", train)
        with pytest.raises(Done):
            own.fit()


def take(own: Trainer, active: Active) -> None:
    """Some steps, with everything that comes between two steps."""
    for step in range(LONG):
        own._step(active, batches())
        assert not own._ends(active) and own.step == step + 1


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("nan", ["stop", "skip"])
def test_a_step_does_not_wait(tmp_path: Path, amp: Any, nan: Any) -> None:
    """Two micro-batches, mixed precision, clipping, averages, and the guard."""

    def check(own: Trainer, active: Active) -> None:
        take(own, active)
        assert len(active.stepper.waiting) == LONG
        weight = active.stepper.trained[0]
        assert weight.device == CUDA and active.running.optimizer.state[weight]["step"].device == CUDA
        assert refused(lambda: own._log(active))  # the values are still there: this is what waits

    on_fake_device(trainer(tmp_path, amp=amp, nan=nan, **QUIET), check)


class Normed(nn.Module):
    """Two blocks with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)) for _ in range(2)))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x.flatten(1)))


@pytest.mark.parametrize("nan", ["stop", "skip"])
def test_a_step_with_running_statistics_does_not_wait(tmp_path: Path, nan: Any) -> None:
    """They are kept and chosen between on the device."""
    full = progc.capture(Normed(), (torch.zeros(4, 1, 8, 8),))
    settings = Settings(batch=BATCH, ema=(0.9,), nan=nan, compile="eager", **QUIET)
    plan = progc.plan(full, stages=1, total=LONG + 2, unit="steps")

    def check(own: Trainer, active: Active) -> None:
        take(own, active)
        assert len(active.stepper.waiting) == LONG
        assert refused(active.stepper.buffers.keep) is False
        assert refused(lambda: active.stepper.buffers.restore(active.stepper.waiting[0].left_out)) is False

    own = Trainer(plan, program=full, task=Task(samples(6 * BATCH)), run=tmp_path, settings=settings)
    on_fake_device(own, check)


def reads_itself(outputs: Any, batch: Any) -> torch.Tensor:
    loss = cross_entropy(outputs, batch)
    return loss if loss.item() else loss


def goes_to_the_host(outputs: Any, batch: Any) -> torch.Tensor:
    loss = cross_entropy(outputs, batch)
    return loss + loss.detach().cpu()


@pytest.mark.parametrize("loss", [reads_itself, goes_to_the_host])
def test_a_planted_wait_is_noticed(tmp_path: Path, loss: Any) -> None:
    own = trainer(tmp_path, **QUIET)
    own.task = dataclasses.replace(own.task, loss=loss)
    on_fake_device(own, noticed)


UNFUSED = {"optimizer": lambda module: torch.optim.AdamW(module.parameters(), foreach=True)}


@pytest.mark.parametrize("more", [{"spike": 5.0}, {"log_every": 1}, UNFUSED], ids=["spike", "log_every", "optimizer"])
def test_runs_that_ask_for_values_wait(tmp_path: Path, more: dict[str, Any]) -> None:
    """Those that docs/training.md names."""
    on_fake_device(trainer(tmp_path, **{**QUIET, **more}), noticed)


def noticed(own: Trainer, active: Active) -> None:
    assert refused(lambda: own._step(active, batches()))


@functools.cache
def searched() -> Schedule:
    """A stage whose candidates differ in depth, width and image size: their tensors are slices and resampled tables."""
    return progc.plan(
        program(), strategy="one-shot", decide="training", stages=2, depths="2,4", widths="16,32",
        resolutions="4,8", unfreeze="none", total=4 * SEARCH, unit="steps",
        settings={"epochs": SEARCH / (72 // BATCH), "evaluations": 1, "time": "predicted"},
    )  # fmt: skip


def on_cuda_with_its_members(net: Supernet) -> Supernet:
    """The same supernet with all its tensors on the fake device."""
    made = copy.copy(net)
    made.program = net.program.replace(tensors=all_on_cuda(net.program.tensors))
    made.members = tuple(
        dataclasses.replace(
            member, program=small, module=ProgramModule(small), statistics=all_on_cuda(member.statistics)
        )
        for member in net.members
        for small in (member.program.replace(tensors=all_on_cuda(member.program.tensors)),)
    )
    return made


def test_a_step_of_a_search_does_not_wait(tmp_path: Path) -> None:
    """Every sub-network of a supernet, at its image size."""

    def train(self: Trainer, active: Active) -> bool:
        search = active.running.search
        assert isinstance(search, SupernetStage) and search.total == SEARCH
        with fake_cuda():
            self.parallel = self.watch.parallel = Single(CUDA)
            module = SupernetModule(on_cuda_with_its_members(search._search.supernet)).train()
            running = copy.copy(active.running)
            running.module, running.ema = module, Averages(module, self.settings.ema)
            running.optimizer = self._make_optimizer(module)
            stepper, trained = self._stepper(running, module), set()
            active = dataclasses.replace(active, running=running, module=module, stepper=stepper)
            for _ in range(search.total):
                self._step(active, self._choose(active, search, batches()))
                trained.add(module.chosen)
                assert self._ends(active) is False
        assert trained == set(range(len(module.members)))
        raise Done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train", train)
        patch.setattr("progc.search.online.draws", lambda *given: [step % given[-1] for step in range(given[-2])])
        with pytest.raises(Done):
            own = trainer(tmp_path, **QUIET)
            Trainer(searched(), program=program(), task=own.task, run=tmp_path, settings=own.settings).fit()
