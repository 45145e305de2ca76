"""Whole copies on every rank, gradients averaged: torch's DistributedDataParallel, wrapped anew for every stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from progc.train.parallel.single import Single

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.averages import Averages
    from progc.emit.stage_module import StageModule


class Ddp(Single):
    """See `Parallel`. Buffers are those of rank 0, as DistributedDataParallel has them."""

    name = "ddp"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._wrapped: DistributedDataParallel | None = None

    def wrap(self, module: StageModule, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """A new wrapper, which looks at what trains now. One that is kept drifts apart when a layer trains later."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            self._wrapped = None
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(module, device_ids=ids)
        return self._wrapped

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Lets go of the wrapper; its hooks on the parameters go with it. Buffers become those of rank 0."""
        if self._wrapped is not None:
            for buffer in self._wrapped.module.buffers():
                dist.broadcast(buffer, 0)
        self._wrapped = None

    def reducing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Without it gradients would be averaged after every micro-batch."""
        return contextlib.nullcontext() if last or self._wrapped is None else self._wrapped.no_sync()

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

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
        """Gradients are the same on all ranks, and so is their norm."""
        return super().clip(parameters, limit)
