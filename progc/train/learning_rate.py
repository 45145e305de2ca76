"""The learning rate as a function of progress: there is nothing to restore."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from progc.train.settings import Settings


def factor(settings: Settings, step: int, total: int, boundary: int = 0) -> float:
    """What peak rates are multiplied by in the step that is taken when `step` of `total` steps are done.

    A linear rise over the first `warmup` of the run, then `constant`, `linear` or `cosine` (Loshchilov and Hutter,
    SGDR, 2017) down to `min_lr`, which the last step comes close to. Behind a boundary it rises again from 0 over
    `rewarm` steps to where it would be anyway.

    Args:
        boundary: step at which the present stage began; 0 in the first one.
    """
    warm = round(settings.warmup * total)
    if step < warm:
        value = (step + 1) / warm
    else:
        progress = (step - warm) / max(total - warm, 1)
        shape = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": (1.0 + math.cos(math.pi * progress)) / 2,
        }[settings.lr_schedule]
        value = settings.min_lr + (1.0 - settings.min_lr) * shape
    since = step - boundary
    if boundary > 0 and since < settings.rewarm:
        value *= (since + 1) / settings.rewarm
    return value


def set_rates(optimizer: Optimizer, value: float) -> None:
    """Every group's `lr` becomes its peak, `initial_lr`, times `value`; the peak is its `lr` where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * value
