"""Optimizers by name, with the usual groups: vectors (norms, biases, positions of one dim) without weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.errors import InputError
from progc.suggestions import did_you_mean

NAMES: Mapping[str, type[Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def maker(name: str, lr: float, weight_decay: float, options: Mapping[str, Any]) -> Callable[[nn.Module], Optimizer]:
    """Makes an optimizer of a module's parameters.

    Args:
        options: further arguments of its class.

    Raises:
        InputError: an unknown name; when called, an option that the class does not take.
    """
    if name not in NAMES:
        hint = did_you_mean(name, NAMES) or f": expected {', '.join(NAMES)}"
        raise InputError(f"optimizer `{name}`{hint}")

    def make(module: nn.Module) -> Optimizer:
        parameters = [p for _, p in module.named_parameters()]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        try:
            return NAMES[name]([group for group in groups if group["params"]], lr=lr, **options)  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer {name}: {error}; see the arguments of {NAMES[name].__name__}") from error

    return make
