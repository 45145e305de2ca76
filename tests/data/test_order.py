"""The order of data and the random numbers of samples are functions of (seed, epoch, index) and of nothing else."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from progc.data.order import ORDER, Batches, DataPosition, Seeded, fetch, order
from progc.data.seeds import sample_generator, sample_seed
from progc.data.task import Task
from progc.errors import InputError


class Drawing:
    """Samples that draw from every global generator, as transforms do."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, torch.rand(1).item(), random.random(), float(np.random.rand())


def test_an_order_is_a_permutation_and_never_changes() -> None:
    assert order(0, 0, 12).tolist() == [4, 10, 6, 3, 5, 11, 2, 9, 1, 0, 7, 8]  # as long as ORDER is 2
    assert ORDER == 2 and sample_seed(0, 0, 1) == 7189287542454764870
    for seed, epoch, length in ((0, 0, 0), (0, 0, 1), (3, 2, 1000), (-1, 0, 10), (2**70, 5, 10)):
        found = order(seed, epoch, length)
        assert found.dtype == torch.int64 and sorted(found.tolist()) == list(range(length))
        torch.rand(3)
        assert torch.equal(order(seed, epoch, length), found)
    with pytest.raises(InputError, match="-1 samples"):
        order(0, 0, -1)


def test_a_position_of_another_order_is_refused() -> None:
    position = DataPosition(3, 2, 16)
    assert DataPosition.from_json(position.to_json()) == position
    before = {"seed": 3, "epoch": 2, "index": 16}  # as saved before orders had a version
    for data, version in ((before, 1), ({**before, "order": ORDER + 1}, ORDER + 1)):
        with pytest.raises(
            InputError, match=rf"data order: expected version {ORDER}, got version {version}, .*new run$"
        ):
            DataPosition.from_json(data)
    for odd in ({**before, "order": "2"}, {**position.to_json(), "seed": None}):
        with pytest.raises(ValueError, match="not a position"):
            DataPosition.from_json(odd)
    with pytest.raises(TypeError):
        DataPosition.from_json({"seed": 3, "place": 2})


def test_orders_of_seeds_and_epochs_differ() -> None:
    texts = {tuple(order(seed, epoch, 50).tolist()) for seed in range(30) for epoch in range(30)}
    assert len(texts) == 900


def test_every_sample_comes_first_as_often() -> None:
    """Chi-square of the first and last places over 20,000 orders; 5 samples, 4 degrees of freedom."""
    orders = np.array([order(seed, 1, 5).numpy() for seed in range(20_000)])
    for place in (0, 2, 4):
        counts = np.bincount(orders[:, place], minlength=5)
        assert ((counts - 4000) ** 2 / 4000).sum() < 18.5  # 0.1 % level


def test_seeds_of_samples_differ_in_their_low_bits_too() -> None:
    """The generator of torch on the CPU uses 32 bits of a seed."""
    seeds = [sample_seed(0, epoch, index) for epoch in range(20) for index in range(500)]
    assert len({seed % 2**32 for seed in seeds}) > 9_990 and all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds]).mean(0)
    assert abs(bits - 0.5).max() < 0.025
    assert not torch.equal(
        torch.rand(3, generator=sample_generator(0, 0, 1)), torch.rand(3, generator=sample_generator(0, 1, 0))
    )


def test_workers_make_no_difference_and_a_run_resumes_at_any_batch() -> None:
    def seen(workers: int, start: int = 0) -> list[Any]:
        torch.manual_seed(workers)  # of no consequence
        batches = Batches(20, 4, seed=3, epoch=1, start=start)
        loader = DataLoader(Seeded(Drawing(), 3), batch_sampler=batches, num_workers=workers)
        return [[column.tolist() for column in batch] for batch in loader]

    whole = seen(0)
    assert len(whole) == 5 and sorted(sum((batch[0] for batch in whole), [])) == list(range(20))
    assert seen(2) == whole and seen(2, start=8) == whole[2:] and seen(0, start=12) == whole[3:]


def test_ranks_share_each_batch_whatever_their_number() -> None:
    def batches(world: int, start: int = 0) -> list[list[int]]:
        ranks = [list(Batches(23, 4, 5, 2, start=start, rank=rank, world=world)) for rank in range(world)]
        return [[index for part in parts for _, index in part] for parts in zip(*ranks, strict=True)]

    assert batches(1) == batches(2) == batches(4) and len(batches(1)) == 5
    assert batches(1)[:2] + batches(4, start=8)[:1] + batches(2, start=12) == batches(1)
    with pytest.raises(InputError, match="a batch of 4 for rank 0 of 3: expected a multiple"):
        Batches(23, 4, 5, world=3)
    with pytest.raises(InputError, match="24 of 23 samples are used"):
        Batches(23, 4, 5, start=24)


def test_the_global_generators_stay_as_they_are() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one = fetch(Drawing(), [3, 4], 0, 0)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert fetch(Drawing(), [4], 0, 0) == one[1:] and fetch(Drawing(), [4], 0, 1) != one[1:]


def test_batches_of_a_task_follow_seed_and_epoch_alone() -> None:
    task = Task(Drawing())

    def seen(seed: int, epoch: int) -> list[Any]:
        torch.rand(1), random.random(), np.random.rand()
        return [[column.tolist() for column in batch] for batch in task.batches(4, seed=seed, epoch=epoch)]

    assert seen(1, 0) == seen(1, 0) != seen(1, 1)
    assert [index for batch in seen(1, 0) for index in batch[0]] == order(1, 0, 20).tolist()
