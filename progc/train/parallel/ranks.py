"""What all ways to train on several processes share: who they are, and what they tell one another."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from progc.train.parallel.base import Single


class Ranks(Single):
    """See `Parallel`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """See `Parallel.mean`."""
        summed = value.clone()
        dist.all_reduce(summed)
        return summed / self.world

    def any(self, flag: bool) -> bool:
        """See `Parallel.any`."""
        told = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Gives every rank the saved buffers of rank 0, such as running statistics, in one message for each dtype.

    Every rank has seen other samples. Averaged copies, validation and checkpoints take buffers at their word, behind
    the step in which they changed.
    """
    own = {id(value) for value in module.state_dict(keep_vars=True).values()}
    kinds: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in module.buffers():
        if id(buffer) in own and buffer.numel():
            kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, 0)
        for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
