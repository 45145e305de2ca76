"""Runs that fail: whose fault it was, in one line, the exit code, and that the run resumes to the same weights."""

from __future__ import annotations

import copy
import errno
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import progc
from progc.checkpoints import latest
from progc.data.task import Task, cross_entropy
from progc.data.taskfile import load_task
from progc.errors import CheckError, InputError, OutsideError, ProgcError
from progc.ir.program import Program
from progc.ranks import notices
from progc.schedule import Schedule
from progc.train import metrics
from progc.train.boundary import Crossing
from progc.train.failing import AGAIN, BEGAN, exit_code, explained
from progc.train.parallel.ranks import Ddp
from progc.train.settings import Settings
from progc.train.trainer import Trainer
from progc.train.watching import Watch
from tests.command import NET
from tests.data.test_workers import collect_broken_connections
from tests.train.running import outcome

DATA = """
import torch

faults = []

def at(point):
    for fault in faults:
        fault(point)

class Samples:
    def __init__(self, point, count):
        self.point, self.count = point, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        at(self.point)
        return torch.randn(5, generator=torch.Generator().manual_seed(index)), index % 3

def datasets():
    return Samples("sample", 72), Samples("held-out sample", 20)

def loss(outputs, batch):
    at("loss")
    return torch.nn.functional.cross_entropy(outputs, batch[1])

def inputs(batch):
    at("inputs")
    return (batch[0],)
"""


@functools.cache
def plan() -> tuple[Program, Schedule]:
    """A residual network with dropout and a run of two stages of 6 steps, of which the second is deeper."""
    module: dict[str, Any] = {}
    exec(NET.replace("self.head(x)", "self.head(torch.nn.functional.dropout(x, 0.1, self.training))"), module)
    torch.manual_seed(0)
    full = progc.capture(module["big"](), (torch.randn(2, 5),))
    return full, progc.plan(full, stages=2, total=12, unit="steps")


def fresh() -> Program:
    """The network with tensors of its own: a run that resumes in its last stage trains them."""
    shared, _ = plan()
    copies = {id(tensor): copy.deepcopy(tensor) for tensor in shared.tensors.values()}
    return shared.replace(tensors={name: copies[id(tensor)] for name, tensor in shared.tensors.items()})


def trainer(run: Path, path: Path, **settings: Any) -> Trainer:
    values = {"batch": 16, "compile": "eager", "ema": (0.9,), "log_every": 2, "save_every": 2, "validate_every": 5}
    return Trainer(
        plan()[1], program=fresh(), task=load_task(path), run=run, settings=Settings(**{**values, **settings}),
    )  # fmt: skip


class Moment:
    """A trainer of the user's file, and where in its run it is."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.path, self.run = folder / "data.py", folder / "run"
        self.path.write_text(DATA)
        self.trainer = trainer(self.run, self.path, **settings)
        loss: Any = self.trainer.task.loss
        self.faults: list[Callable[[str], None]] = loss._call._function.__globals__["faults"]
        self.faults.clear()
        self.place = "step"
        for owner, name, place in ((Crossing, "_loss_of", "boundary"), (Watch, "_validate", "validation")):
            monkeypatch.setattr(owner, name, self._marked(getattr(owner, name), place))

    def _marked(self, function: Callable[..., Any], place: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def marked(*args: Any) -> Any:
            before, self.place = self.place, place
            try:
                return function(*args)
            finally:
                self.place = before

        return marked

    def break_at(self, point: str, place: str, step: int, error: Callable[[], BaseException]) -> None:
        """Raises an error once."""

        def fault(here: str) -> None:
            if (here, self.place) == (point, place) and self.trainer.step >= step:
                self.faults.clear()
                raise error()

        self.faults.append(fault)

    def failure(self) -> ProgcError:
        with pytest.raises(ProgcError) as caught:
            self.trainer.fit()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300, str(caught.value)
        return caught.value

    def finish(self) -> dict[str, torch.Tensor]:
        """Resumes the run in a new trainer."""
        assert trainer(self.run, self.path).fit().finished
        return outcome(self.run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a run gives that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return Moment(folder, patch).finish()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def bad() -> ValueError:
    return ValueError("not a number: 'x'\nin row 3")


def lost() -> OSError:
    return OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    ("point", "place", "step", "error", "code"),
    [
        ("sample", "step", 0, bad, 2),
        ("loss", "step", 0, bad, 2),
        ("inputs", "step", 0, lost, AGAIN),
        ("sample", "step", 4, bad, BEGAN),
        ("sample", "step", 4, lost, AGAIN),
        ("loss", "step", 4, bad, BEGAN),
        ("inputs", "step", 10, bad, BEGAN),
        ("loss", "boundary", 6, bad, BEGAN),
        ("inputs", "boundary", 6, lost, AGAIN),
        ("loss", "validation", 5, bad, BEGAN),
        ("held-out sample", "validation", 6, bad, BEGAN),
        ("held-out sample", "validation", 12, lost, AGAIN),
        ("inputs", "validation", 10, bad, BEGAN),
    ],
)
def test_a_function_of_the_file_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor],
    point: str, place: str, step: int, error: Callable[[], BaseException], code: int,
) -> None:  # fmt: skip
    moment = Moment(tmp_path, monkeypatch)
    moment.break_at(point, place, step, error)
    failed = moment.failure()
    assert (failed.exit_code, moment.trainer.step >= step) == (code, True)
    line = next(number for number, text in enumerate(DATA.splitlines(), 1) if text.strip().startswith("fault(point)"))
    assert f"data.py:{line}: {type(error()).__name__} when the file" in str(failed), str(failed)
    same(moment.finish(), whole)


@pytest.mark.parametrize("kind", ["train", "validation", "boundary"])
def test_a_disk_that_is_full_when_a_line_of_metrics_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor], kind: str
) -> None:
    moment = Moment(tmp_path, monkeypatch)
    write = metrics.Metrics.write

    def full(self: metrics.Metrics, what: str, step: int, values: Any) -> None:
        if what == kind and step >= 4:
            monkeypatch.setattr(metrics.Metrics, "write", write)
            self._file = Full(self._file)  # type: ignore[assignment]
        write(self, what, step, values)

    monkeypatch.setattr(metrics.Metrics, "write", full)
    failed = moment.failure()
    assert failed.exit_code == AGAIN
    assert "metrics.jsonl cannot be written: No space left on device; free space and run the same command" in str(
        failed
    )
    same(moment.finish(), whole)


class Full:
    """A file on a disk that takes half a line."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, text: str) -> None:
        self.file.write(text[: len(text) // 2])

    def flush(self) -> None:
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_is_full_when_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor], background: bool
) -> None:
    moment = Moment(tmp_path, monkeypatch, save_in_background=background)
    sync = os.fsync

    def full(descriptor: int) -> None:
        if moment.trainer.step >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    failed = moment.failure()
    assert failed.exit_code == AGAIN and "No space left on device" in str(failed)
    monkeypatch.setattr(os, "fsync", sync)
    same(moment.finish(), whole)


def test_a_worker_that_is_killed_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor]
) -> None:
    moment = Moment(tmp_path, monkeypatch, workers=1)
    own, seen = os.getpid(), [0]

    def killed(point: str) -> None:
        seen[0] += point == "sample"
        if os.getpid() != own and seen[0] == 40:
            os.kill(os.getpid(), signal.SIGKILL)

    moment.faults.append(killed)
    failed = moment.failure()
    assert failed.exit_code == AGAIN and "ended by SIGKILL, most often for lack of memory" in str(failed)
    del failed
    collect_broken_connections()
    moment.faults.clear()
    same(moment.finish(), whole)


def test_memory_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment(tmp_path, monkeypatch)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("progc.train.stepping.Stepper.step", full)
    failed = moment.failure()
    assert failed.exit_code == 2 and "the device is out of memory; use a smaller train.batch" in str(failed)


def test_a_fault_of_progc_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment(tmp_path, monkeypatch)
    monkeypatch.setattr("progc.train.stepping.Stepper.step", lambda *_: [][0])
    with pytest.raises(IndexError):
        moment.trainer.fit()
    assert latest(moment.run) is None


def test_codes_tell_whether_to_start_again() -> None:
    assert [exit_code(InputError("x"), step) for step in (0, 1)] == [2, 3]
    assert [exit_code(CheckError("x"), step) for step in (0, 1)] == [1, 1]
    error = InputError("x")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert [exit_code(error, step) for step in (0, 1)] == [75, 75]
    error.__cause__ = FileNotFoundError(errno.ENOENT, "no such file")
    assert exit_code(error, 1) == 3


class Headed(torch.nn.Module):
    """A classifier with a second head, whose output a loss may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(6, 8)
        self.head, self.more = torch.nn.Linear(8, 10), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x).relu()
        return self.head(x), self.more(x)


@pytest.fixture
def group() -> Any:
    """A process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")  # its successor is too new
def test_parameters_that_the_loss_does_not_use_on_several_ranks(tmp_path: Path, group: None) -> None:
    data = [(torch.randn(6, generator=torch.Generator().manual_seed(index)), index % 10) for index in range(32)]

    def made(run: Path, loss: Any) -> Trainer:
        full = progc.capture(Headed(), (torch.zeros(4, 6),))
        return Trainer(
            progc.plan(full, stages=1, total=1), program=full, task=Task(data, loss=loss), run=run,
            settings=Settings(batch=16, compile="eager"), parallel=Ddp(torch.device("cpu")),
        )  # fmt: skip

    with pytest.raises(InputError, match=r"the loss does not depend on more.weight, more.bias, so several proc") as e:
        made(tmp_path / "one", cross_entropy).fit()
    assert e.value.exit_code == 2
    assert made(tmp_path / "all", lambda out, batch: cross_entropy(out, batch) + out[1].mean()).fit().finished


def test_the_other_ranks_tell_whose_error_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progc.ranks.notices.world", lambda: 2)
    monkeypatch.setattr("progc.train.failing.world", lambda: 2)
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.1.1]:4711")

    def ends(rank: int, error: Exception, step: int = 5) -> ProgcError:
        monkeypatch.setattr("progc.ranks.notices.rank", lambda: rank)
        with pytest.raises(ProgcError) as caught, explained(lambda: step):
            raise error
        return caught.value

    try:
        for error, kind, code in (
            (InputError("net.py:7: ValueError when the file computes its loss: bad"), InputError, BEGAN),
            (OutsideError("a process that loads samples was ended by SIGKILL"), OutsideError, AGAIN),
            (CheckError("step 5: the loss is not finite"), CheckError, 1),
        ):
            notices.use(dist.HashStore())
            assert ends(1, error) is error
            told = ends(0, closed)
            assert type(told) is kind and str(told) == f"rank 1 ended the run: {error}"
            assert told.exit_code == error.exit_code == code
        notices.use(dist.HashStore())
        alone = ends(0, closed)
        assert alone.exit_code == AGAIN and "lost the connection to another rank" in str(alone)
    finally:
        notices.use(None)
