"""Order of the data and random numbers of its samples, as pure functions of (seed, epoch, index).

Neither depends on the number of workers, ranks or micro-batches, nor on what was drawn before. There is no state to
save: a run resumes at any index, on another number of ranks if need be.

Seeds come from numpy's `SeedSequence` (progc/data/seeds.py). An order comes from sorting the raw output of numpy's
counter-based generator `Philox` (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011). numpy guarantees
both streams across its versions, but not what its `Generator.permutation` makes of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from progc.data.reading import Reader
from progc.data.seeds import sequence
from progc.errors import InputError

ORDER = 2
"""Version of the order, saved with every position: 1 came from SplitMix64, 2 comes from Philox."""
_EPOCH = 1  # stream of a seed, as `SAMPLE` of progc/data/seeds.py is


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """The position of a run in its data.

    Attributes:
        seed: seed of the order.
        epoch: epoch, counted from 0.
        index: samples of this epoch that all ranks together have used.
    """

    seed: int
    epoch: int = 0
    index: int = 0

    def to_json(self) -> dict[str, int]:
        """Returns a JSON object, with the version of the order that the position refers to."""
        return {"order": ORDER, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> DataPosition:
        """Reads what `to_json` returned.

        Raises:
            InputError: the position refers to another version of the order.
            TypeError, ValueError: not a position.
        """
        values = dict(data)
        version = values.pop("order", 1)
        position = cls(**values)
        if not all(isinstance(value, int) for value in (version, *values.values())):
            raise ValueError("not a position in the data")
        if version != ORDER:
            raise InputError(
                f"data order: expected version {ORDER}, got version {version}, which shuffles samples differently; "
                "finish the run with the progc version that started it, or start a new run"
            )
        return position


def order(seed: int, epoch: int, length: int) -> torch.Tensor:
    """Returns a random order of `length` samples for one epoch: indices `[length]`, int64.

    Raises:
        InputError: the length is negative.
    """
    if length < 0:
        raise InputError(f"{length} samples: expected 0 or more")
    keys = np.random.Philox(sequence(seed, _EPOCH, epoch)).random_raw(length)
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def fetch(samples: Any, indices: list[int], seed: int, epoch: int) -> list[Any]:
    """Returns `samples[index]` for every index, each seeded for itself; the global generators are left unchanged."""
    return Reader(samples).read(indices, seed, epoch)


class Seeded:
    """A map-style data set whose random transforms depend on (seed, epoch, index) only, in workers too.

    It is indexed by `(epoch, index)`, as `Batches` yields them:

        loader = DataLoader(Seeded(samples, seed), batch_sampler=Batches(len(samples), 32, seed, epoch), num_workers=4)
    """

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self._reader = Reader(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Any]:
        """Returns several samples of one epoch; a DataLoader asks for a whole batch this way."""
        return self._reader.read([index for _, index in places], self.seed, places[0][0]) if places else []


class Batches:
    """Yields the batches of one epoch for one rank as lists of `(epoch, index)`; a batch sampler for `Seeded`.

    Ranks share every global batch evenly, so a batch holds the same samples for any number of ranks.
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
            length: number of samples in the data set.
            batch: samples per step over all ranks; an incomplete batch at the end of the epoch is dropped.
            seed, epoch: what the order depends on.
            start: samples of this epoch that are already used, as in `DataPosition.index`.
            rank: rank of this process.
            world: number of ranks.
            shuffle: if False, samples come in the order of the data set.

        Raises:
            InputError: the ranks cannot share a batch evenly, or a number is out of range.
        """
        if batch < 1 or world < 1 or not 0 <= rank < world or batch % world:
            raise InputError(
                f"a batch of {batch} for rank {rank} of {world}: expected a multiple of the number of ranks"
            )
        if not 0 <= start <= length:
            raise InputError(
                f"{start} of {length} samples are used: expected 0 to {length}; check that it is the same data set"
            )
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
