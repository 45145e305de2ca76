"""Seeds of a whole batch are those that numpy's SeedSequence gives for each of its samples."""

from __future__ import annotations

import pytest

from progc.data.seeds import sample_seed, sample_seeds


@pytest.mark.parametrize("seed", [0, 7, -1, 2**31, 2**32, 2**63 + 5, 2**70])
@pytest.mark.parametrize("epoch", [0, 1, 2**32 - 1, 2**32, 2**50])
def test_seeds_of_a_batch_are_those_of_its_samples(seed: int, epoch: int) -> None:
    for indices in ([], [0], [5, 5, 3], list(range(100, 164)), [2**32 - 1, 0], [2**32, 1], [-1, 4]):
        assert sample_seeds(seed, epoch, indices) == [sample_seed(seed, epoch, index) for index in indices]
