"""Creates optimizers of timm by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm.optim
from torch.optim import Optimizer


def names() -> list[str]:
    """Returns the names of all optimizers of timm."""
    return list(timm.optim.list_optimizers())


def make(name: str, groups: Sequence[Mapping[str, Any]], *, lr: float, options: Mapping[str, Any]) -> Optimizer:
    """Creates an optimizer of timm over parameter groups, each with its own weight decay.

    Raises:
        TypeError, ValueError: the optimizer does not take an option.
    """
    made: Optimizer = timm.optim.create_optimizer_v2([dict(group) for group in groups], opt=name, lr=lr, **options)
    return made
