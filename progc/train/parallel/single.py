"""One process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.emit.stage_module import StageModule
    from progc.lift.averages import Averages


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
