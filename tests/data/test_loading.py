"""What a step trains on follows from seed, epoch and index: not from workers, ranks or micro-batches."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from progc.data.loading import steps, steps_per_epoch, validate
from progc.data.task import Task
from progc.errors import InputError
from tests.fake_cuda import CUDA, fake_cuda, refused


class Noisy(Dataset[tuple[Tensor, int]]):
    """Each sample is its index and a number drawn from torch's global generator."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.cat([torch.tensor([float(index)]), torch.rand(1)]), index % 3


def flat(found: list[list[Any]]) -> list[Tensor]:
    """The inputs of every step."""
    return [torch.cat([micro[0] for micro in step]) for step in found]


def served(**options: Any) -> list[Tensor]:
    return flat(list(steps(Task(Noisy(26)), batch=8, seed=3, epoch=1, **options)))


def test_workers_and_micro_batches_change_nothing() -> None:
    expected = served()
    assert len(expected) == 3 == steps_per_epoch(Task(Noisy(26)), 8)
    for options in ({"accumulate": 3}, {"workers": 2}, {"workers": 1, "accumulate": 2}):
        assert all(torch.equal(a, b) for a, b in zip(expected, served(**options), strict=True)), options


def test_ranks_share_each_batch() -> None:
    parts = [served(rank=rank, world=2) for rank in range(2)]
    together = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(served(), together, strict=True))


def test_an_epoch_goes_on_where_it_was() -> None:
    assert all(torch.equal(a, b) for a, b in zip(served()[1:], served(start=8), strict=True))
    assert served(start=24) == []


def test_epochs_follow_one_another_and_a_run_resumes_in_any_of_them() -> None:
    def epochs(first: int, count: int | None, **options: Any) -> Iterator[list[Any]]:
        return steps(Task(Noisy(26)), batch=8, seed=3, epoch=first, epochs=count, **options)

    expected = [step for epoch in (1, 2, 3) for step in flat(list(epochs(epoch, 1)))]
    assert len(expected) == 9
    for found in (
        epochs(1, 3),
        epochs(1, None),
        epochs(1, None, workers=2),
        epochs(1, None, accumulate=3, workers=1),
    ):
        assert all(torch.equal(a, b) for a, b in zip(expected, flat(list(itertools.islice(found, 9))), strict=True))
    for used in range(10):
        found = epochs(1 + used // 3, None, start=used % 3 * 8, workers=used % 2)
        rest = flat(list(itertools.islice(found, 9 - used)))
        assert all(torch.equal(a, b) for a, b in zip(expected[used:], rest, strict=True)), used
    assert [len(list(epochs(1, 2, start=start))) for start in (16, 24, 26)] == [4, 3, 3]
    with pytest.raises(InputError, match="expected at least a batch of 8 samples, got 3"):
        next(steps(Task(Noisy(3)), batch=8, seed=3, epoch=0, epochs=None))


class Rarely(Noisy):
    """Most samples draw nothing, and the first of them are those that are watched."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        flipped = random.Random(index).random() < 0.1
        return torch.cat([torch.tensor([float(index)]), torch.rand(1) if flipped else torch.zeros(1)]), index % 3


def test_samples_that_rarely_draw_get_the_same_numbers_everywhere() -> None:
    def found(start: int = 0, **options: Any) -> list[Tensor]:
        return flat(list(steps(Task(Rarely(90)), batch=6, seed=1, epoch=2, epochs=2, start=start, **options)))

    expected = found()
    assert sum(int((step[:, 1] != 0).sum()) for step in expected) > 8
    for start, options in ((0, {"workers": 2}), (0, {"accumulate": 2}), (60, {}), (72, {"workers": 1})):
        assert all(torch.equal(a, b) for a, b in zip(expected[start // 6 :], found(start, **options), strict=True))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    served()
    served(workers=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_naive_way_depends_on_what_was_drawn_before() -> None:
    """A loader without it: after a resume, order and noise are others."""
    drawn = []
    for before in (0, 7):
        torch.manual_seed(0)
        torch.rand(before)
        loader = torch.utils.data.DataLoader(Noisy(26), 8, shuffle=True)
        drawn.append(next(iter(loader))[0])
    assert not torch.equal(*drawn)


def test_batches_go_to_a_gpu_from_pinned_memory_while_the_host_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that the host waits for raises on the fake device."""
    asked = []

    def loader(samples: Any, **options: Any) -> list[Any]:
        asked.append(options["pin_memory"])
        return [[torch.empty(8, 2), torch.empty(8, dtype=torch.int64)]] * 3

    with fake_cuda():
        monkeypatch.setattr("progc.data.loading.DataLoader", loader)
        assert all(tensor.device == CUDA for step in serving(CUDA) for tensor in step[0])
        assert all(tensor.device.type == "cpu" for step in serving(torch.device("cpu")) for tensor in step[0])
        assert refused(lambda: torch.empty(8).to(CUDA))
    assert asked == [True, False]


def serving(device: torch.device) -> list[list[Any]]:
    return list(steps(Task(Noisy(26)), batch=8, seed=3, epoch=1, device=device))


def test_a_validation_waits_for_a_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its result; batches, losses and counts before it follow one another without the host."""
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    reached = []

    def mean(sums: Tensor) -> Tensor:
        reached.append(sums)
        return sums

    with fake_cuda():
        task = Task(Noisy(3), validation=Noisy(26))
        assert refused(lambda: validate(logits, task, batch=8, mean=mean, device=CUDA))
    assert [sums.shape for sums in reached] == [(5,)] and reached[0].device == CUDA
    assert len(pinned) == 2 * 4


def logits(batch: Any) -> Tensor:
    return batch[0].sum(1, keepdim=True).expand(-1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world": 3}, "expected a multiple of the number of ranks"),
        ({"world": 4, "accumulate": 3}, "cannot make 3 micro-batches"),
    ],
)
def test_what_cannot_be_shared_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        served(**options)
    with pytest.raises(InputError, match="expected at least a batch of"):
        steps_per_epoch(Task(Noisy(3)), 4)


def test_validation_counts_an_incomplete_batch_and_every_rank_once() -> None:
    task = Task(Noisy(26), validation=Noisy(7))

    def call(batch: Any) -> Tensor:
        return torch.nn.functional.one_hot(batch[0][:, 0].long() % 4, 6).float() * 4

    whole = validate(call, task, batch=4)
    assert whole["top1"] == pytest.approx(sum(i % 4 == i % 3 for i in range(7)) / 7)
    assert whole["loss"] == pytest.approx(validate(call, task, batch=7)["loss"])
    sums = [validate(call, task, batch=4, rank=rank, world=2, mean=lambda value: value) for rank in range(2)]
    weights = [4 / 7, 3 / 7]
    for name, value in whole.items():
        assert value == pytest.approx(sum(w * own[name] for w, own in zip(weights, sums, strict=True)))
