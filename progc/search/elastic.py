"""Training and evaluating sub-networks of a supernet: plain steps, one sub-network each."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.errors import CheckError
from progc.lift.averages import Averages
from progc.search.supernet import SubNetwork, Supernet


def draws(seed: int, epoch: int, steps: int, members: int) -> list[int]:
    """Which sub-network each step of an epoch trains: uniform, independent, the same on all ranks.

    Args:
        seed, epoch: the numbers follow from these alone.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randint(members, (steps,), generator=generator).tolist()


def train_step(
    supernet: Supernet,
    member: SubNetwork,
    task: Task,
    batch: Any,
    optimizer: Optimizer,
    *,
    averages: Sequence[Averages] = (),
    clip: float | None = None,
    where: str = "training",
    stage: int | None = None,
) -> float:
    """One step of one sub-network: forward, loss, backward, clip, step, averages. Returns the loss.

    Parameters that the sub-network does not have get no gradient (None): optimizers leave them and their state alone.

    Args:
        batch: at any image size.
        where: for the message of an error.
        stage: for a network with a stage input.

    Raises:
        CheckError: the loss is not finite; nothing was changed then, but for buffers.
    """
    member.module.train()
    optimizer.zero_grad(set_to_none=True)
    batch = on_device(batch, supernet)
    tensors = member.leaves(supernet.program.tensors)
    loss = member.loss(task, batch, tensors, stage)
    value = float(loss.detach())
    check_finite(value, where, "lower the learning rate, or look at the data")
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_([tensor for _, tensor in supernet.program.parameters()], clip)
    optimizer.step()
    for average in averages:
        average.update(supernet.program)
    return value


@torch.no_grad()
def losses(
    member: SubNetwork,
    task: Task,
    batches: Sequence[Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    train: bool,
    stage: int | None = None,
) -> list[float]:
    """The loss on each batch, without gradients; nothing is written to, buffers included.

    Args:
        tensors: of `member.values`.
        train: whether the network computes as in training.
    """
    member.module.train(train)
    kept = _own_buffers(member, tensors) if train else dict(tensors)
    return [float(member.loss(task, batch, kept, stage)) for batch in batches]


def timed_losses(
    member: SubNetwork,
    task: Task,
    batches: Sequence[Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    stage: int | None = None,
) -> tuple[list[float], float]:
    """As `losses` in train mode, with the backward, and the mean seconds of a batch, as published: no warm-up."""
    member.module.train()
    kept = {
        name: tensor.detach().requires_grad_(member.program.tensors[name].requires_grad)
        for name, tensor in _own_buffers(member, tensors).items()
    }
    found, seconds = [], 0.0
    for batch in batches:
        start = _now(kept)
        loss = member.loss(task, batch, kept, stage)
        loss.backward()
        seconds += _now(kept) - start
        found.append(float(loss.detach()))
    return found, seconds / len(batches)


def _own_buffers(member: SubNetwork, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    specs = member.program.specs
    return {name: t.clone() if specs[name].kind == "buffer" else t for name, t in tensors.items()}


def _now(tensors: Mapping[str, torch.Tensor]) -> float:
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return time.perf_counter()


def check_finite(value: float, where: str, advice: str) -> None:
    """Raises CheckError if a loss is NaN or infinite."""
    if not math.isfinite(value):
        raise CheckError(f"one-shot search, {where}: the loss is {value}; {advice}")


def on_device(batch: Any, supernet: Supernet) -> Any:
    """The batch where the supernet's tensors are."""
    device = next((tensor.device for tensor in supernet.program.tensors.values()), torch.device("cpu"))
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), batch)
