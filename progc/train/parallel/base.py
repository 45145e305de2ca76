"""What the trainer needs of the processes that train together.

One process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.emit.stage_module import StageModule
    from progc.lift.averages import Averages


class Parallel(Protocol):
    """One way to train on several processes.

    Every stage is wrapped anew: what wraps a module looks at what trains once, and would leave the ranks to drift apart
    where that changes later.

    Attributes:
        name: `none`, `ddp` or `fsdp`.
        rank, world: of this process, and how many there are.
        device: on which it computes.
    """

    name: str
    rank: int
    world: int
    device: torch.device

    def wrap(self, module: StageModule, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """The module to call for a stage; optimizer and averages then hold what it holds (shards, where it shards)."""

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Undoes `wrap`: module, optimizer and averages hold whole tensors again, the same on all ranks."""

    def reducing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; gradients are reduced over ranks in the last one of a step."""

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
        """Norm of all gradients, 0-d f32, equal on all ranks; they are scaled down to `limit` where it is larger."""

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over ranks of a tensor."""

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank; the same answer on all."""


class Single:
    """One process on one device: nothing is wrapped, nothing is reduced. See `Parallel`."""

    name = "none"
    rank = 0
    world = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, module: StageModule, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """The module itself."""
        return module

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Nothing."""

    def reducing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Nothing."""
        return contextlib.nullcontext()

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
        """See `Parallel.clip`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], limit, norm)
        return norm

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The value."""
        return value

    def any(self, flag: bool) -> bool:
        """The flag."""
        return flag
