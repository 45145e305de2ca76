"""Batches of rows are those that default_collate makes of samples; whatever else could differ is read as samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate, random_split

from progc.data.batching import Batching, Rows


def stored(**options: Any) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 4, 4, generator=generator)
    return TensorDataset(images, torch.arange(40), torch.rand(40, 2, generator=generator).to(**options))


def same(one: Any, other: Any) -> bool:
    """Whether batches have one structure, with the same tensors, laid out alike."""
    assert type(one) is type(other) is list and len(one) == len(other)
    return all(
        torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride() for a, b in zip(one, other, strict=True)
    )


class Doubled(TensorDataset):
    """Another way to read."""

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(2 * value for value in super().__getitem__(index))


def part_of_a_part() -> Any:
    return Subset(random_split(stored(), [30, 10], torch.Generator().manual_seed(1))[0], [4, 2, 9, 9, 0, 17, 20])


DATA = {
    "tensors": stored,
    "half": lambda: stored(dtype=torch.float16),
    "bool": lambda: stored(dtype=torch.bool),
    "complex": lambda: stored(dtype=torch.complex64),
    "one tensor": lambda: TensorDataset(torch.arange(40)),
    "subset": lambda: Subset(stored(), range(0, 40, 2)),
    "part of a part": part_of_a_part,
}
OTHERS = {
    "channels last": lambda: TensorDataset(stored().tensors[0].contiguous(memory_format=torch.channels_last)),
    "expanded": lambda: TensorDataset(torch.randn(40, 1, 4).expand(-1, 3, -1)),
    "sparse": lambda: TensorDataset(torch.eye(40).to_sparse()),
    "a class of its own": lambda: Doubled(*stored().tensors),
    "part of it": lambda: Subset(Doubled(*stored().tensors), range(20)),
    "from the end": lambda: Subset(stored(), [-1, 3]),
    "list": lambda: [(torch.ones(2), 1)] * 40,
}


@pytest.mark.parametrize("name", DATA)
def test_rows_are_what_collating_samples_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DATA[name]()
    indices = [3, 0, 6, 6, 1]
    expected = default_collate([data[index] for index in indices])
    monkeypatch.setattr("progc.data.batching.Reader.read", lambda *args: pytest.fail("read as samples"))
    assert same(Batching(data, default_collate).make(indices, 0, 0), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_rows_is_read_as_samples(name: str) -> None:
    assert Rows.of(OTHERS[name]()) is None


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "sparse"])
def test_and_gives_what_collating_gives(name: str) -> None:
    data = OTHERS[name]()
    expected = default_collate([data[index] for index in (1, 0, 1)])
    assert same(Batching(data, default_collate).make([1, 0, 1], 0, 0), expected)


def test_a_collate_of_ones_own_gets_samples() -> None:
    found = Batching(stored(), len).make([1, 2, 3], 0, 0)
    assert found == 3
