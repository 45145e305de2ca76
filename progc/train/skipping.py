"""Optimizers that can leave out a step on the device, so that the host does not have to wait for the decision.

The fused optimizers of torch (Adam, AdamW, SGD) read a flag on the device, `found_inf`: where it is 1, `step` changes
neither weights nor state. `torch.amp.GradScaler` uses the same flag. No other optimizer of torch has one, and none can
be given one from outside: a copy of weights and state, to be restored after a bad step, would cost three times the
memory of the weights. With those optimizers the host reads loss and norm before each step, as GradScaler does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def fused_options(module: nn.Module, options: Mapping[str, Any], *, sharded: bool = False) -> dict[str, Any]:
    """Returns the options of torch's Adam, AdamW or SGD that make its steps fused on a GPU; none on other devices.

    On a CPU there is nothing to wait for, and results stay those of the default implementation.

    Args:
        module: module whose parameters the optimizer gets.
        options: options that the user chose; another implementation among them is kept.
        sharded: whether the parameters will be DTensors, which torch's fused SGD cannot update.
    """
    own = {"foreach", "fused", "capturable", "differentiable"} & options.keys()
    parameters = list(module.parameters())
    fits = all(parameter.device.type == "cuda" and parameter.is_floating_point() for parameter in parameters)
    # Fused SGD keeps a momentum of its own kind at its first step if gradients are dampened; see `can_skip`.
    odd = options.get("dampening", 0) != 0 or ("momentum" in options and sharded)
    return {"fused": True} if parameters and fits and not own and not odd else {}


def adamw(module: nn.Module, lr: float) -> Optimizer:
    """Returns torch's AdamW for all parameters of a module, fused where that is possible."""
    fused = fused_options(module, {}).get("fused")
    return torch.optim.AdamW(module.parameters(), lr=lr, fused=fused)


def can_skip(optimizer: Optimizer) -> bool:
    """Returns whether `optimizer.step()` changes nothing where `optimizer.found_inf` is 1, and prepares it for that.

    Fused kernels need counts on the device of the parameter, and state laid out in memory as the parameter is; growth
    and checkpoints promise neither. Fused SGD leaves the momentum of a skipped first step uninitialised (torch 2.14),
    so it begins with zeros, from which the first step makes the gradient: the same as without.
    """
    groups = optimizer.param_groups
    if not getattr(optimizer, "_step_supports_amp_scaling", False) or not all(group.get("fused") for group in groups):
        return False
    if any(group.get("momentum") and group.get("dampening") for group in groups):
        return False
    for group in groups:
        for parameter in group["params"]:
            if group.get("momentum") and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    optimizer.state[parameter][name] = _placed(value, parameter)
    return True


def _placed(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A state tensor on the device of its parameter, with the same strides if it has the same shape."""
    if value.device != parameter.device:
        value = value.to(parameter.device)
    if value.shape == parameter.shape and value.stride() != parameter.stride():
        value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value


def step_unless(optimizer: Optimizer, left_out: torch.Tensor) -> None:
    """Takes a step with an optimizer for which `can_skip` is true.

    Args:
        optimizer: the optimizer.
        left_out: f32, 0-d, on the device: 1 leaves everything as it is, 0 takes the step.
    """
    held: Any = optimizer
    held.grad_scale, held.found_inf = None, left_out
    try:
        optimizer.step()
    finally:
        del held.grad_scale, held.found_inf
