"""Makes batches: reads samples, each with random numbers of its own, and collates them.

The rows of a `TensorDataset`, or of a `Subset` of one, are taken from its tensors at once, without making samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset, default_collate

from progc.data.failures import Named, collated
from progc.data.reading import Reader


class Batching:
    """Makes the batches of a data set.

    Attributes:
        samples: the data set: `len()` and `[index]`.
        collate: makes a batch from a list of samples.
    """

    def __init__(self, samples: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.samples, self.collate = samples, collate
        self._rows = Rows.of(samples) if collate is default_collate else None
        self._reader = Reader(Named(samples))

    def make(self, indices: Sequence[int], seed: int, epoch: int) -> Any:
        """Returns the batch of some samples; what is drawn for each depends on seed, epoch and its index only.

        Raises:
            InputError: a sample cannot be read, or the samples do not make a batch; names them.
        """
        if self._rows is not None:
            return self._rows.take(indices)
        return collated(self.collate, self._reader.read(indices, seed, epoch), indices)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A data set whose samples are the rows of tensors: reading one runs no code of a user, and draws nothing.

    Attributes:
        tensors: contiguous tensors of one length.
        chosen: the row of each sample, `[samples]`; None if it is the index of the sample.
    """

    tensors: tuple[torch.Tensor, ...]
    chosen: torch.Tensor | None = None

    @classmethod
    def of(cls, samples: Any) -> Rows | None:
        """Returns the rows of a data set; None if it is of another kind, or of a class that reads differently."""
        kind = type(samples)
        own = getattr(kind, "__getitem__", None), getattr(kind, "__getitems__", None)
        if own == (Subset.__getitem__, Subset.__getitems__):
            inner = cls.of(samples.dataset)
            if inner is None:
                return None
            outer = torch.as_tensor(samples.indices)
            if not ((outer >= 0) & (outer < len(samples.dataset))).all():
                return None
            return cls(inner.tensors, outer if inner.chosen is None else inner.chosen[outer])
        if own == (TensorDataset.__getitem__, getattr(TensorDataset, "__getitems__", None)):
            # Stacked rows are contiguous. Rows of other layouts might not be, and kernels may then round differently.
            if all(type(each) is torch.Tensor and _plain(each) for each in samples.tensors):
                return cls(samples.tensors)
        return None

    def take(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Returns what `default_collate` makes of these samples."""
        rows = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        rows = rows if self.chosen is None else self.chosen[rows]
        return [tensor.index_select(0, rows.to(tensor.device)) for tensor in self.tensors]


def _plain(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or not tensor.is_contiguous():
        return False
    return tensor.stride() == torch.empty(tensor.shape, device="meta").stride()  # also in dims of size 1
