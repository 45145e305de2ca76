"""A sample gets the same random numbers whatever was read before it, and only what is drawn from is seeded."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from progc.data import reading
from progc.data.reading import WATCHED, Reader
from progc.ir.random_state import GLOBAL_GENERATORS, GlobalGenerator, kept_random_states, seed_cpu

DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),
    "numpy pairs": lambda: float(np.random.randn()),
    "torch's seed": lambda: float(np.random.default_rng(torch.initial_seed()).random()),
    "torch, forked": lambda: forked(),
}
LENGTH = 4 * WATCHED


def forked() -> float:
    """Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return torch.rand(()).item()


class Stored:
    """Samples that draw where `draws` says so.

    Attributes:
        asked: the index of every sample that was read.
    """

    def __init__(self, draw: Callable[[], float], draws: Callable[[int], bool]) -> None:
        self.draw, self.draws = draw, draws
        self.asked: list[int] = []

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[int, float]:
        self.asked.append(index)
        return index, self.draw() if self.draws(index) else 0.0


class Several(Stored):
    """The same, several at once.

    Attributes:
        together: the indices of every call for several.
    """

    def __init__(self, draw: Callable[[], float], draws: Callable[[int], bool]) -> None:
        super().__init__(draw, draws)
        self.together: list[list[int]] = []

    def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
        self.together.append(indices)
        return [(index, self.draw() if self.draws(index) else 0.0) for index in indices]


def late(index: int) -> bool:
    """Only samples that come after those that are watched."""
    return index >= 2 * WATCHED


def own_coin(index: int) -> bool:
    """Decided by a generator of its own."""
    return bool(np.random.default_rng(index).random() < 0.5)


WHEN = {"always": lambda index: True, "late": late, "own coin": own_coin}


def each_alone(samples: Any) -> list[Any]:
    return [Reader(samples).read([index], 3, 1)[0] for index in range(LENGTH)]


def all_in_batches(reader: Reader, size: int) -> list[Any]:
    found = []
    for first in range(0, LENGTH, size):
        torch.rand(2), random.random(), np.random.randn(3)  # of no consequence, and leaves the second one of a pair
        found += reader.read(range(first, min(first + size, LENGTH)), 3, 1)
    return found


@pytest.mark.parametrize("kind", [Stored, Several])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("what", DRAWS)
def test_draws_do_not_depend_on_what_was_read_before(what: str, when: str, kind: Any) -> None:
    expected = each_alone(Stored(DRAWS[what], WHEN[when]))
    drawn = [number for index, number in expected if WHEN[when](index)]
    assert len(set(drawn)) == len(drawn) > LENGTH // 4
    for size in (1, 7, 48):
        assert all_in_batches(Reader(kind(DRAWS[what], WHEN[when])), size) == expected


@pytest.mark.parametrize("what", ["python", "numpy", "torch"])
def test_a_reader_that_does_not_look_would_be_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GlobalGenerator, "same", lambda self, state: True)
    samples = Stored(DRAWS[what], late)
    assert all_in_batches(Reader(samples), 16) != all_in_batches(Reader(samples), 16)


def test_epochs_and_seeds_give_other_draws() -> None:
    samples = Stored(DRAWS["torch"], lambda index: True)
    found = {tuple(Reader(samples).read([5, 6], seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(found) == 4


@pytest.fixture
def seedings(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each generator was seeded."""
    counts = {each.name: 0 for each in GLOBAL_GENERATORS}

    def counted(each: GlobalGenerator) -> GlobalGenerator:
        def seed(number: int) -> None:
            counts[each.name] += 1
            each.seed(number)

        return dataclasses.replace(each, seed=seed)

    monkeypatch.setattr(reading, "GLOBAL_GENERATORS", tuple(counted(each) for each in GLOBAL_GENERATORS))
    return counts


def test_only_what_is_drawn_from_is_seeded_after_the_first_samples(seedings: dict[str, int]) -> None:
    for what, drawn in {"torch": {"torch"}, "python": {"python"}, "numpy": {"numpy"}, "": set()}.items():
        reader = Reader(Stored(DRAWS[what or "torch"], lambda index, what=what: bool(what)))
        reader.read(range(WATCHED), 0, 0)
        before = dict(seedings)
        reader.read(range(WATCHED, LENGTH), 0, 0)
        more = {name: seedings[name] - before[name] for name in seedings}
        assert more == {name: (LENGTH - WATCHED) * (name in drawn) for name in seedings} and reader.drawn == drawn


def test_a_data_set_that_gives_several_at_once_is_asked_once_for_a_batch() -> None:
    samples = Several(DRAWS["torch"], lambda index: False)
    reader = Reader(samples)
    assert [index for index, _ in all_in_batches(reader, WATCHED)] == list(range(LENGTH))
    assert samples.asked == list(range(WATCHED))  # those that are watched
    assert samples.together == [list(range(first, first + WATCHED)) for first in range(WATCHED, LENGTH, WATCHED)]


def test_a_data_set_that_draws_is_read_sample_by_sample() -> None:
    samples = Several(DRAWS["numpy"], late)
    all_in_batches(Reader(samples), WATCHED)
    # The first batch that draws is read again; later ones are not asked for at once.
    assert [each[0] for each in samples.together] == [WATCHED, 2 * WATCHED]
    assert samples.asked == [*range(WATCHED), *range(2 * WATCHED, LENGTH)]


def test_several_at_once_that_are_no_list_of_samples_are_read_one_by_one() -> None:
    class Collated(Several):
        def __getitems__(self, indices: list[int]) -> Any:
            self.together.append(indices)
            return {"index": torch.tensor(indices)}

    samples = Collated(DRAWS["torch"], lambda index: False)
    assert all_in_batches(Reader(samples), WATCHED) == [(index, 0.0) for index in range(LENGTH)]
    assert len(samples.together) == 1


def test_the_second_number_of_a_pair_counts_as_a_draw() -> None:
    """Drawing it moves none of the words of numpy's generator."""
    samples = Stored(DRAWS["numpy pairs"], lambda index: index == WATCHED)
    expected = each_alone(samples)[WATCHED]
    with kept_random_states():
        seed_cpu(0)
        np.random.randn()
        assert np.random.get_state()[3] == 1
        reader = Reader(samples)
        reader.read(range(WATCHED), 3, 1)
        assert reader.read([WATCHED], 3, 1) == [expected] and np.random.get_state()[3] == 1


@pytest.mark.parametrize("what", ["nothing", "torch", "python", "numpy"])
def test_the_global_generators_stay_as_they_are_also_after_an_error(what: str) -> None:
    def draw() -> float:
        value = 0.0 if what == "nothing" else DRAWS[what]()
        if broken:
            raise KeyError("damaged")
        return value

    broken = False
    samples = Stored(draw, lambda index: True)
    reader = Reader(samples)
    with kept_random_states():
        np.random.randn()
        states = [each.state() for each in GLOBAL_GENERATORS]
        for indices in (range(WATCHED), range(WATCHED, LENGTH)):
            reader.read(indices, 0, 0)
            assert all(each.same(state) for each, state in zip(GLOBAL_GENERATORS, states, strict=True))
        broken = True
        asked = len(samples.asked)
        with pytest.raises(KeyError, match="damaged"):
            reader.read([4, 5], 0, 0)
        assert all(each.same(state) for each, state in zip(GLOBAL_GENERATORS, states, strict=True))
        assert samples.asked[asked:] == [4]  # never twice
