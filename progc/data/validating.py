"""Loss and accuracy over all validation samples, exact over incomplete batches and over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.data.order import fetch
from progc.data.task import Task
from progc.errors import InputError


def validate(
    call: Callable[[Any], Any],
    task: Task,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    mean: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
    device: torch.device | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Mean `loss`, and `top1` and `top5` accuracy where outputs are logits `[batch, classes]` and labels are indices.

    Args:
        call: a batch to outputs.
        batch: samples per call on this rank.
        mean: over ranks.
        stop: asked before every batch, and the same on all ranks; once it says so, there is no result: None.

    Raises:
        InputError: there are no validation samples.
    """
    samples = task.validation
    if samples is None or not len(samples):
        raise InputError("no validation samples are given; return (train, validation) from datasets()")
    own = range(rank, len(samples), world)
    sums: dict[str, float] = {"loss": 0.0, "count": 0.0}
    # All ranks call equally often: where parameters are spread over them, a call is a meeting.
    for first in range(0, len(range(0, len(samples), world)), batch):
        if stop():
            return None
        counted = list(own[first : first + batch])
        chosen = counted or [0]
        # Random transforms of validation samples, if there are any, are the same at every validation.
        given = task.collate(fetch(samples, chosen, seed=0, epoch=0))
        if device is not None:
            given = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), given)
        outputs = call(given)
        sums["loss"] += float(task.loss(outputs, given)) * len(counted) if counted else 0.0
        sums["count"] += len(counted)
        for name, value in _right(outputs, given).items():
            sums[name] = sums.get(name, 0.0) + (value if counted else 0.0)
    names = sorted(sums)
    values = mean(torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64, device=device)).tolist()
    found = dict(zip(names, values, strict=True))
    return {name: value / found["count"] for name, value in found.items() if name != "count"}


def _right(outputs: Any, batch: Any) -> dict[str, float]:
    """How many samples are right by the first and among the first five classes."""
    logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
        return {}
    if logits.dim() != 2 or labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        return {}
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {"top1": float(first[:, :1].sum()), "top5": float(first.sum())}
