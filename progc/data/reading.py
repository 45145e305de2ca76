"""Reads samples so that what is drawn for one of them depends on (seed, epoch, index) only.

Seeding three global generators for every sample takes longer than reading a sample from memory, and many data sets draw
nothing. So a reader finds out which generators a data set draws from. For the first `WATCHED` samples it seeds all of
them, and looks which have moved. Later it seeds those that were drawn from, and looks once per batch whether the others
have moved; if one has, it reads the batch a second time with that one seeded as well. Every sample that it returns was
made with all generators seeded that the sample draws from, so results do not depend on what a reader has seen: they are
the same with any number of workers, in any batches, and after any resume. A sample that asks for the seed of torch's
generator, to make a generator of its own from it, counts as one that draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from progc.data.seeds import sample_seeds
from progc.ir.random_state import GLOBAL_GENERATORS, TORCH, asked_for_seed, kept_random_states

WATCHED = 32
"""Number of samples for which all generators are seeded and looked at."""


class Reader:
    """Reads samples of a map-style data set; the global generators are as they were afterwards.

    A data set with `__getitems__` (as torch's DataLoader knows it) is asked for whole batches as long as it draws
    nothing. Samples of other data sets are read one by one.

    Attributes:
        samples: the data set: `len()` and `[index]`.
        drawn: names of the generators that samples were seen to draw from.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        self.drawn: set[str] = set()
        self._watched = 0
        self._together = callable(getattr(samples, "__getitems__", None))

    def read(self, indices: Sequence[int], seed: int, epoch: int) -> list[Any]:
        """Returns `samples[index]` for every index, each with random numbers of its own.

        No sample is read again after an error.
        """
        places = list(indices)
        new = places[: max(WATCHED - self._watched, 0)]
        found = self._watching(new, seed, epoch) if new else []
        return found + self._reading(places[len(new) :], seed, epoch) if len(new) < len(places) else found

    def _reading(self, places: list[int], seed: int, epoch: int) -> list[Any]:
        seeded = [each for each in GLOBAL_GENERATORS if each.name in self.drawn]
        together = self._together and not seeded
        changed = [(each, each.state()) for each in GLOBAL_GENERATORS]
        found: Any = []
        try:
            with asked_for_seed() as asked:
                if together:
                    found = self.samples.__getitems__(places)
                elif seeded:
                    for index, number in zip(places, sample_seeds(seed, epoch, places), strict=True):
                        for each in seeded:
                            each.seed(number)
                        found.append(self.samples[index])
                else:
                    found = [self.samples[index] for index in places]
            changed = [(each, state) for each, state in changed if each in seeded or not each.same(state)]
        finally:
            for each, state in changed:
                each.restore(state)
        as_expected = len(changed) == len(seeded) and (TORCH in self.drawn or not asked)
        if together:  # what DataLoader also takes, such as a batch that is collated already, is no list of samples
            self._together = as_expected = (
                as_expected and isinstance(found, (list, tuple)) and len(found) == len(places)
            )
        return list(found) if as_expected else self._watching(places, seed, epoch)

    def _watching(self, places: list[int], seed: int, epoch: int) -> list[Any]:
        """Reads samples with all generators seeded, and remembers which of them the samples draw from."""
        found = []
        with kept_random_states(accelerator=False):
            for index, number in zip(places, sample_seeds(seed, epoch, places), strict=True):
                for each in GLOBAL_GENERATORS:
                    each.seed(number)
                before = [(each, each.state()) for each in GLOBAL_GENERATORS]
                with asked_for_seed() as asked:
                    found.append(self.samples[index])
                self.drawn.update(each.name for each, state in before if not each.same(state))
                self.drawn.update([TORCH] if asked else [])
        self._watched += len(places)
        return found
