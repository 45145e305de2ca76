"""Optimizers of timm by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm.optim
from torch.optim import Optimizer


def names() -> list[str]:
    """Every name that timm knows."""
    return list(timm.optim.list_optimizers())


def make(name: str, groups: Sequence[Mapping[str, Any]], *, lr: float, options: Mapping[str, Any]) -> Optimizer:
    """timm's optimizer over parameter groups, which say their own weight decay.

    Raises:
        TypeError, ValueError: an option that it does not take.
    """
    made: Optimizer = timm.optim.create_optimizer_v2([dict(group) for group in groups], opt=name, lr=lr, **options)
    return made
