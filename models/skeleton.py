"""Builds models for their structure only: weights are not initialised, buffers have their real values.

A target provides names and shapes; its weights are never read. Without initialisation even a large target is cheap:
parameters become meta tensors when a module registers them, and afterwards uninitialised memory, which the operating
system does not allocate until it is touched.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary


def build_skeleton(build: Callable[[], nn.Module], *, allocate: bool = True) -> nn.Module:
    """Returns the model of `build()`, with real buffers and arbitrary parameter values.

    If the constructor needs the values of its parameters, the model is built normally.

    Args:
        build: builds the model.
        allocate: allocate memory for the parameters. Otherwise trainable parameters stay on the meta device, and frozen
            ones, which are computed tables, keep their values (for `progc.capturing.capture.capture_deferred`).
    """
    try:
        with _parameters_on_meta(every=allocate):
            model = build()
    except Exception:  # operations that need data raise exceptions of many types for a meta tensor
        return build()
    if any(buffer.is_meta for buffer in model.buffers()):
        # The constructor puts buffers on the device of its parameters (masks, index tables), which must be a real one.
        return build()
    if allocate:
        _allocate(model)
    return model


@contextlib.contextmanager
def _parameters_on_meta(every: bool = True) -> Iterator[None]:
    original = nn.Module.register_parameter
    owner = threading.get_ident()
    replaced: Any = WeakIdKeyDictionary()  # a parameter registered twice is tied: one replacement for both

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        chosen = type(param) is nn.Parameter and not param.is_meta and (every or param.requires_grad)
        if threading.get_ident() == owner and param is not None and chosen:
            if param not in replaced:
                replaced[param] = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            param = replaced[param]
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _allocate(model: nn.Module) -> None:
    """Allocates memory for meta parameters and buffers, in place; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = empty
                slots[name] = made[id(tensor)]  # type: ignore[assignment]
