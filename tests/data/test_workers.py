"""Worker processes that fail, are killed, or do not end: whose fault it was, and that nothing is left of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from progc.data.loading import served, steps
from progc.data.order import order
from progc.data.task import Task
from progc.errors import InputError, OutsideError

BATCH, COUNT = 4, 16


class Odd:
    """Samples of which one, the n-th in the order of the epoch, does something in a worker."""

    def __init__(self, place: int, does: Callable[[], Any]) -> None:
        self.index, self.does = int(order(0, 0, COUNT)[place]), does

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.index and get_worker_info() is not None:
            self.does()
        return torch.full((2,), float(index))


def serve(samples: Any, workers: int = 1, then: Callable[[], Any] = lambda: None) -> int:
    """Takes all steps of an epoch, and calls `then` after the first one; returns their number."""
    taken = 0
    with served(steps(Task(samples), batch=BATCH, seed=0, epoch=0, workers=workers)) as batches:
        for _ in batches:
            taken += 1
            if taken == 1:
                then()
    return taken


def fails() -> None:
    raise KeyError("no such column\nin this row")


def killed(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def collect_broken_connections() -> None:
    """Collects what torch leaves of a connection to a worker that died.

    torch raises its error about a dead worker in a signal handler, so also while a connection is being made. Its socket
    is then closed by garbage collection, with a warning in whatever test runs at that time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def none_is_left() -> Any:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) == before
    collect_broken_connections()


@pytest.mark.parametrize("place", [0, 9], ids=["first step", "later"])
def test_an_error_in_a_worker_is_one_line_with_place_and_sample(place: int) -> None:
    samples = Odd(place, fails)
    with pytest.raises(InputError) as caught:
        serve(samples, workers=2)
    text = str(caught.value)
    assert f"KeyError when sample {samples.index} is read: 'no such column" in text and "test_workers.py:" in text
    assert len(text) < 250 and "\n" not in text and "Traceback" not in text
    assert "in fails" in str(caught.value.__cause__)  # for those who ask for the traceback


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (signal.SIGKILL, OutsideError, "ended by SIGKILL, most often for lack of memory; use fewer train.workers"),
        (signal.SIGSEGV, InputError, "ended by SIGSEGV; use train.workers=0 to see which sample"),
    ],
)
def test_a_worker_that_is_killed(number: int, kind: type[InputError], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        serve(Odd(9, lambda: killed(number)))
    assert type(caught.value) is kind


def test_a_worker_that_exits() -> None:
    with pytest.raises(InputError, match="ended with exit code 3; use train.workers=0"):
        serve(Odd(5, lambda: os._exit(3)))


def test_a_worker_that_is_killed_while_the_loss_is_computed_is_not_the_fault_of_the_loss() -> None:
    """torch raises its error wherever the training process is."""

    def loss() -> None:
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        raise InputError("net.py:7: RuntimeError when the file computes its loss")

    with pytest.raises(OutsideError, match="ended by SIGKILL"):
        serve(Odd(0, lambda: None), then=loss)


def blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(1000)


@pytest.mark.parametrize("stuck", [lambda: time.sleep(1000), blocked], ids=["sleeps", "deaf"])
def test_workers_end_with_an_error_elsewhere(stuck: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("progc.data.workers._PATIENCE", 0.2)

    def then() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve(Odd(6, stuck), then=then)


def test_a_signal_to_the_whole_job_leaves_workers_alone() -> None:
    assert serve(Odd(6, lambda: (killed(signal.SIGTERM), killed(signal.SIGINT)))) == COUNT // BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_make_no_batch_are_named(workers: int) -> None:
    samples = [(torch.zeros(5 if index != 11 else 4), index) for index in range(COUNT)]
    with pytest.raises(InputError, match=r"samples do not make a batch: .*f32\[4\].*give all samples the same") as e:
        serve(samples, workers=workers)
    assert "sample 11 is" in str(e.value) and len(str(e.value)) < 300
    with pytest.raises(InputError, match="samples do not make a batch"):
        next(Task(samples).batches(COUNT, seed=0))


def test_labels_that_the_network_has_no_class_for() -> None:
    task = Task([(torch.zeros(2), 0)])
    with pytest.raises(InputError, match=r"label 7 in a batch, but the network has 3 classes, 0 to 2; build it with"):
        task.loss(torch.zeros(2, 3), [None, torch.tensor([1, 7])])
    with pytest.raises(InputError, match=r"cross entropy of outputs and labels f32\[2, 3\] and f32\[5\]: "):
        task.loss(torch.zeros(2, 3), [None, torch.zeros(5)])
