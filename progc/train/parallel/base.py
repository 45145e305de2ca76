"""Defines what the trainer needs from the processes that train together, and implements it for one process."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.lift.averages import Averages


TIMEOUT = datetime.timedelta(hours=2)
"""Timeout of collectives: a rank that compiles keeps the others waiting for minutes."""


class Parallel(Protocol):
    """A way to train on one or several processes.

    Every stage is wrapped again: a wrapper looks once at which parameters train, and ranks would drift apart if that
    changed later.

    Attributes:
        name: `none`, `ddp` or `fsdp`.
        rank: rank of this process.
        world: number of processes.
        device: device on which this process computes.
    """

    name: str
    rank: int
    world: int
    device: torch.device

    def wrap(self, module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """Returns the module to call for a stage; optimizer and averages then hold its tensors (shards with FSDP)."""

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Undoes `wrap`: module, optimizer and averages hold whole tensors again, equal on all ranks."""

    def reducing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Context for forward and backward of a micro-batch; gradients are reduced over ranks in the last of a step."""

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
        """Scales gradients down to norm `limit`; returns their norm before, 0-d f32, equal on all ranks."""

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean of a tensor over ranks."""

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on some rank; the same answer on all ranks."""

    def asked(self, flag: bool) -> Callable[[], bool]:
        """Starts what `any` does and returns at once; the returned function waits for the answer. Call it once."""


class Single:
    """One process on one device: nothing is wrapped and nothing is reduced. See `Parallel`."""

    name = "none"
    rank = 0
    world = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """Returns the module itself."""
        return module

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Does nothing."""

    def reducing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Returns a context that does nothing."""
        return contextlib.nullcontext()

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
        """See `Parallel.clip`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], limit, norm)
        return norm

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the value."""
        return value

    def any(self, flag: bool) -> bool:
        """Returns the flag."""
        return flag

    def asked(self, flag: bool) -> Callable[[], bool]:
        """See `Parallel.asked`."""
        return lambda: flag
