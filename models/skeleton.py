"""Models built for their structure only: weights are neither initialised nor touched, buffers are real.

A target shows names and shapes; its weights are never read. Skipping their initialisation makes a large
target cheap: parameters become meta tensors the moment a module registers them, and uninitialised memory,
which the operating system only hands out when touched, afterwards.
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
    """What `build()` returns, with real buffers and arbitrary parameter values.

    Falls back to an ordinary build for constructors that need the values of their parameters.

    Args:
        allocate: give the parameters memory; otherwise those that train stay on the meta device, and the others, which
            are tables that someone computed, have their values (`progc.capturing.capture.capture_deferred` takes such
            a model).
    """
    try:
        with _parameters_on_meta(every=allocate):
            model = build()
    except Exception:  # many types: each operation that needs data refuses a meta tensor in its own way
        return build()
    if any(buffer.is_meta for buffer in model.buffers()):
        # A constructor that puts buffers where its parameters are (masks, index tables): only real ones will do.
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
    """Gives meta parameters and buffers memory, in place; tied ones stay tied."""
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
