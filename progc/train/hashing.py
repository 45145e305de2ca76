"""One hash for everything that trains, and whether all ranks have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from progc.errors import CheckError
from progc.lift.averages import Averages


def digest(module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> str:
    """sha256 (hex) over parameters, buffers, averages and optimizer state: names, shapes, dtypes, bytes.

    Which parameters train counts, too. Optimizer state and groups count by the names of their parameters, under which
    the order of parameters in the optimizer makes no difference. Tensors have to be whole (no DTensor).
    """
    whole = hashlib.sha256()
    names: dict[int, str] = {}
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(held, key=lambda item: item[0]):
        names.setdefault(id(tensor), name)
        _add(whole, f"{name} {tensor.requires_grad}", tensor)
    if ema is not None:
        _add(whole, "ema", ema.num_updates)
        for decay, copy in sorted(ema.tensors.items()):
            for name, tensor in sorted(copy.items()):
                _add(whole, f"ema {decay!r} {name}", tensor)
    for number, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        for key, value in sorted(group.items()):
            if key != "params":
                _add(whole, f"group {number} {key}", value)
        # A parameter that is not the module's has no name, and counts by its place.
        entries = [(names.get(id(p), f"?{place}"), p) for place, p in enumerate(group["params"])]
        for name, parameter in sorted(entries, key=lambda entry: entry[0]):
            _add(whole, f"group {number}", name)
            assert optimizer is not None
            _add(whole, f"state {number} {name}", optimizer.state.get(parameter, {}))
    return whole.hexdigest()


def check_same(own: str) -> None:
    """Compares the hash of this rank with those of all others.

    Raises:
        CheckError: on every rank, naming those that differ from rank 0.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    odd = [str(rank) for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise CheckError(
            f"ranks differ from rank 0 in weights, averages or optimizer state: {', '.join(odd)}; go on from the last "
            "checkpoint"
        )


def _add(whole: Any, name: str, value: Any) -> None:
    """Adds a tensor, or plain data with tensors in it. Other objects count by their type: their text has addresses."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        whole.update(f"{name} {len(value)}\n".encode())
        for key in sorted(value, key=str):
            _add(whole, f"{name} {key}", value[key])
    elif isinstance(value, (list, tuple)):
        whole.update(f"{name} {len(value)}\n".encode())
        for place, item in enumerate(value):
            _add(whole, f"{name} {place}", item)
    else:
        plain = isinstance(value, (bool, int, float, complex, str, type(None)))
        whole.update(f"{name} {value!r}\n".encode() if plain else f"{name} {type(value).__qualname__}\n".encode())
