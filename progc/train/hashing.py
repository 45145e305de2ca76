"""One hash for everything that trains, and whether all ranks have the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from progc.averages import Averages
from progc.errors import CheckError


def digest(module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> str:
    """sha256 (hex) over parameters, buffers, averages and optimizer state: names, shapes, dtypes, bytes.

    Optimizer state counts by the names of its parameters, options of groups as JSON where they are plain values.
    """
    whole = hashlib.sha256()
    names: dict[int, str] = {}
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        names.setdefault(id(tensor), name)
        _add(whole, name, tensor)
    for decay, copy in sorted(ema.tensors.items()) if ema is not None else ():
        for name, tensor in sorted(copy.items()):
            _add(whole, f"ema {decay!r} {name}", tensor)
    if optimizer is not None:
        entries = []
        for number, group in enumerate(optimizer.param_groups):
            plain = {key: value for key, value in group.items() if isinstance(value, (bool, int, float, str, tuple))}
            whole.update(f"group {number} {json.dumps(plain, sort_keys=True, default=str)}\n".encode())
            entries += [(names.get(id(p), "?"), number, p) for p in group["params"]]
        for name, number, parameter in sorted(entries, key=lambda entry: entry[:2]):
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                _add(whole, f"state {number} {name} {key}", value)
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
    if not isinstance(value, torch.Tensor):
        whole.update(f"{name} {value!r}\n".encode())
        return
    tensor = value.detach().cpu().contiguous()
    whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    if tensor.numel():
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
