"""Splits and joins batches along the samples, dim 0 of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import InputError


def size(batch: Any) -> int:
    """Returns the number of samples of a batch: dim 0 of the first tensor that has dims.

    Raises:
        InputError: the batch has no such tensor.
    """
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    raise InputError(
        f"expected a batch with a tensor [samples, ...], got {type(batch).__name__} without one; fix datasets()"
    )


def part(batch: Any, start: int, stop: int) -> Any:
    """Returns the samples `start` to `stop` of a batch; other values than tensors of all samples do not change."""
    whole = size(batch)

    def cut(leaf: Any) -> Any:
        mine = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == whole
        return leaf[start:stop] if mine else leaf

    return pytree.tree_map(cut, batch)


def regrouped(batches: Sequence[Any], wanted: int, count: int | None = None) -> list[Any]:
    """Returns the samples of some batches, in their order, as batches of `wanted` samples.

    Args:
        count: largest number of batches; None: no limit. An incomplete batch at the end is left out.
    """
    found: list[Any] = []
    held: list[Any] = []
    for batch in batches:
        start, whole = 0, size(batch)
        while start < whole and len(found) != count:
            stop = min(whole, start + wanted - sum(map(size, held)))
            held.append(part(batch, start, stop) if stop - start < whole else batch)
            start = stop
            if sum(map(size, held)) == wanted:
                found.append(joined(held))
                held = []
    return found


def joined(pieces: Sequence[Any]) -> Any:
    """Joins batches of the same structure into one batch."""
    if len(pieces) == 1:
        return pieces[0]
    sizes = [size(piece) for piece in pieces]

    def join(*leaves: Any) -> Any:
        tensors = all(isinstance(leaf, torch.Tensor) and leaf.dim() for leaf in leaves)
        if tensors and all(leaf.shape[0] == own for leaf, own in zip(leaves, sizes, strict=True)):
            return torch.cat(leaves)
        return leaves[0]

    return pytree.tree_map(join, *pieces)
