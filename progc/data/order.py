"""Order of the data and random numbers of its samples, as functions of (seed, epoch, index): nothing to restore.

Nothing depends on workers, on what was drawn before, or on the version of a library: keys come from a counter-based
generator (SplitMix64: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014), and sorting by
them gives the order. A run resumes at any index, on another number of ranks if need be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from progc.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_ORDER, _SAMPLE = 1, 2  # streams that have nothing to do with each other


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """Where a run stands in its data.

    Attributes:
        seed: of the order.
        epoch: counted from 0.
        index: samples of this epoch that all ranks together have used.
    """

    seed: int
    epoch: int = 0
    index: int = 0


def order(seed: int, epoch: int, length: int) -> torch.Tensor:
    """A random order of `length` samples for one epoch: indices `[length]`, int64.

    Raises:
        InputError: the length is negative.
    """
    if length < 0:
        raise InputError(f"{length} samples: expected 0 or more")
    keys = _keys(_ORDER, seed, epoch, np.arange(length, dtype=np.uint64))
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed for all that is drawn for sample `index` (its place in the data set) in this epoch: an int of 63 bits."""
    return int(_keys(_SAMPLE, seed, epoch, np.array([index & _MASK], dtype=np.uint64))[0] >> np.uint64(1))


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator (CPU) for all that is drawn for one sample, seeded with `sample_seed`."""
    return torch.Generator().manual_seed(sample_seed(seed, epoch, index))


@contextlib.contextmanager
def global_random() -> Iterator[None]:
    """Puts the global generators of torch (CPU), Python and numpy back at the end."""
    held = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(held[0])
        random.setstate(held[1])
        np.random.set_state(held[2])


def seed_global(seed: int, epoch: int, index: int) -> None:
    """Seeds the global generators of torch (CPU), Python and numpy for one sample: transforms draw from them."""
    value = sample_seed(seed, epoch, index)
    torch.default_generator.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def fetch(samples: Any, indices: list[int], seed: int, epoch: int) -> list[Any]:
    """`samples[index]` for every index, each with random numbers of its own; the global generators stay as they are."""
    found = []
    with global_random():
        for index in indices:
            seed_global(seed, epoch, index)
            found.append(samples[index])
    return found


class Seeded:
    """A map-style data set whose random transforms follow (seed, epoch, index), in workers too.

    Its items are asked for by `(epoch, index)`, as `Batches` gives them:

        loader = DataLoader(Seeded(samples, seed), batch_sampler=Batches(len(samples), 32, seed, epoch), num_workers=4)
    """

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        return fetch(self.samples, [index], self.seed, epoch)[0]


class Batches:
    """Batches of one epoch for one rank, as lists of `(epoch, index)`; a batch sampler for `Seeded`.

    Ranks share every global batch evenly, so that a batch holds the same samples however many ranks there are.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int,
        epoch: int = 0,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        """
        Args:
            length: samples of the data set.
            batch: samples per step over all ranks; an incomplete batch at the end of the epoch is left out.
            start: samples of this epoch that were used already, as `DataPosition.index`.
            rank: of `world`.
            shuffle: False: the order of the data set.

        Raises:
            InputError: a batch that the ranks cannot share evenly, or numbers out of range.
        """
        if batch < 1 or world < 1 or not 0 <= rank < world or batch % world:
            raise InputError(f"a batch of {batch} for rank {rank} of {world}: expected a multiple of the ranks")
        if not 0 <= start <= length:
            raise InputError(f"{start} of {length} samples are used: expected 0 to {length}; is it another data set?")
        self.length, self.batch, self.seed, self.epoch, self.start = length, batch, seed, epoch, start
        self.rank, self.world, self.shuffle = rank, world, shuffle

    def __len__(self) -> int:
        return (self.length - self.start) // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = order(self.seed, self.epoch, self.length) if self.shuffle else torch.arange(self.length)
        share = self.batch // self.world
        for step in range(len(self)):
            first = self.start + step * self.batch + self.rank * share
            yield [(self.epoch, index) for index in indices[first : first + share].tolist()]


def _keys(stream: int, seed: int, epoch: int, indices: np.ndarray[Any, np.dtype[np.uint64]]) -> Any:
    """64 random bits for each index `[n]`."""
    base = stream
    for part in (seed, epoch):
        base = int(_mixed(np.array([(base + part * _GOLDEN) & _MASK], dtype=np.uint64))[0])
    with np.errstate(over="ignore"):
        return _mixed(np.uint64(base) + (indices + np.uint64(1)) * np.uint64(_GOLDEN))


def _mixed(values: np.ndarray[Any, np.dtype[np.uint64]]) -> Any:
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
