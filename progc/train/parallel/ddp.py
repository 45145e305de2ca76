"""Whole copies on every rank, gradients averaged: torch's DistributedDataParallel, wrapped anew for every stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from progc.train.parallel.ranks import Ranks, same_buffers

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.emit.stage_module import StageModule
    from progc.lift.averages import Averages


class Ddp(Ranks):
    """See `Parallel`. Buffers are those of rank 0 behind every step.

    DistributedDataParallel has it so before every forward, which is too late for what looks at them in between.
    """

    name = "ddp"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._wrapped: DistributedDataParallel | None = None

    def wrap(self, module: StageModule, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """A new wrapper, which looks at what trains now. One that is kept drifts apart when a layer trains later."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            self._wrapped = None
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)
        return self._wrapped

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Lets go of the wrapper; its hooks on the parameters go with it."""
        self._wrapped = None

    @contextlib.contextmanager
    def reducing(self, last: bool) -> Iterator[Any]:
        """Without it gradients would be averaged after every micro-batch."""
        with contextlib.nullcontext() if last or self._wrapped is None else self._wrapped.no_sync():
            yield
        if last and self._wrapped is not None:
            same_buffers(self._wrapped.module)
