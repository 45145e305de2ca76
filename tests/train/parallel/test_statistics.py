"""Batch norms and the number of processes: what is told, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.data.task import Task
from progc.errors import CaptureError, InputError
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.trainer import Trainer


class SyncNormAct(nn.SyncBatchNorm):
    """Followed by an activation, as libraries write it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def net(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4)) for _ in range(2))
    return nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, nn.Flatten(), nn.Linear(16, 3))


def captured(norm: Callable[[int], nn.Module]) -> progc.Program:
    return progc.capture(net(norm), (torch.rand(4, 1, 4, 4),))


class Both(Single):
    """The first of two processes, as far as making a trainer goes."""

    world = 2


def trainer(program: progc.Program, run: Path, processes: type[Single]) -> Trainer:
    samples = torch.utils.data.TensorDataset(torch.rand(16, 1, 4, 4), torch.arange(16) % 3)
    return Trainer(
        progc.plan(program, stages=1, total=1), program=program, task=Task(samples), run=run,
        settings=Settings(batch=4, compile="eager"), parallel=processes(torch.device("cpu")),
    )  # fmt: skip


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What capture logs as a warning."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Kept(logging.WARNING)
    logging.getLogger("progc").addHandler(handler)
    yield found
    logging.getLogger("progc").removeHandler(handler)


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, SyncNormAct])
def test_statistics_over_all_processes_are_told_and_refused_for_several(
    tmp_path: Path, logged: list[str], kind: type[nn.Module]
) -> None:
    program = captured(kind)
    assert program.synced == ("1.1", "2.1")
    assert logged == [
        "progc: 1.1 and 1 more: SyncBatchNorm is captured as batch norm, which is the same in one process; several "
        "processes cannot train the captured network"
    ]
    assert progc.apply(program, "grow-width{width=*2}").synced == program.synced
    assert trainer(program, tmp_path, Single).notes == ()
    with pytest.raises(InputError, match=r"^1\.1 and 1 more are SyncBatchNorm .* so 2 processes would train with"):
        trainer(program, tmp_path, Both)


def test_several_processes_do_not_capture_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would fail in their forward on a CPU; the reason and what to do are told instead."""
    monkeypatch.setattr("progc.capturing.capture.world", lambda: 2)
    with pytest.raises(CaptureError, match=r"takes statistics over all 2 processes \(SyncBatchNorm: 1\.1 and 1 more\)"):
        captured(nn.SyncBatchNorm)
    assert captured(nn.BatchNorm2d).synced == ()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda width: nn.BatchNorm2d(width, track_running_stats=False)])
def test_batch_norms_say_that_results_depend_on_the_processes(tmp_path: Path, norm: Callable[[int], nn.Module]) -> None:
    (note,) = trainer(captured(norm), tmp_path, Both).notes
    assert note.startswith("batch norms (1.1 and 1 more) take statistics of the samples of one process: results depend")
    assert trainer(captured(norm), tmp_path, Single).notes == ()


@pytest.mark.parametrize("norm", [lambda width: nn.GroupNorm(2, width), nn.InstanceNorm2d, lambda width: nn.Identity()])
def test_other_norms_do_not(tmp_path: Path, norm: Callable[[int], nn.Module]) -> None:
    assert trainer(captured(norm), tmp_path, Both).notes == ()
