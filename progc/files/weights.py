"""Reads weight files: safetensors, or torch files that hold tensors only. Pickled objects are refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from progc.errors import InputError, one_line

# Trainers keep a state dict under one of these keys, next to optimizer state; looked up in this order.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "ema", "module")
_EMA_FIRST = ("state_dict_ema", "model_ema", "ema", *_WRAPPERS)
# Wrappers of torch put these before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path, *, ema: bool = False) -> dict[str, torch.Tensor]:
    """Returns all tensors of a weight file, on the CPU, by name; prefixes of torch's wrappers are removed.

    Args:
        path: a safetensors file, or a file of `torch.save` (read with `weights_only=True`).
        ema: whether to take the averaged copy (EMA) where a torch file holds both.

    Raises:
        InputError: the file is missing, is corrupt, or needs pickle.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; expected weights as .safetensors or .pt")
    tensors = _torch_file(path, ema) if _is_torch(path) else _safetensors_file(path)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the tensors of a weight file into `model`, in place; names and shapes must be those of the model.

    A name may be missing if it is tied to one that is present.

    Raises:
        InputError: see `read_weights`; or the file does not fit (the message gives the first names that differ).
    """
    tensors = read_weights(path)
    state = model.state_dict(keep_vars=True)
    present = {id(state[name]) for name in tensors if name in state}
    optional = {name for name, value in state.items() if id(value) in present}
    check_fit(path, tensors, state, type(model).__name__, optional)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def check_fit(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    model: str,
    optional: Iterable[str] = (),
) -> None:
    """Compares names and shapes of a weight file with a model's state dict.

    Args:
        path: the file, for the message.
        tensors: the tensors of the file.
        state: the state dict of the model.
        model: name of the model, for the message.
        optional: names that the file may leave out.

    Raises:
        InputError: names are missing or unexpected, or have another shape; the message counts them and gives the first.
    """
    free = set(optional)
    missing = [name for name in state if name not in tensors and name not in free]
    unexpected = [name for name in tensors if name not in state]
    shapes = [
        f"{name}: {list(tensors[name].shape)} in the file, {list(value.shape)} in the model"
        for name, value in state.items()
        if name in tensors and isinstance(value, torch.Tensor) and tensors[name].shape != value.shape
    ]
    found = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    parts = [f"{len(names)} {what} ({_first(names)})" for what, names in found if names]
    if parts:
        raise InputError(
            f"{path} does not fit {model}: {'; '.join(parts)}; give the weights of this model at this size"
        )


def _first(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _is_torch(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return False
    return path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".tar") or zipfile.is_zipfile(path)


def _safetensors_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({one_line(error, 160)}); it may be cut off or in "
            "another format; save it again"
        ) from error
    return tensors


def _torch_file(path: Path, ema: bool) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled objects besides tensors, or is corrupt; progc does not load it. If you trust it, "
            f"convert it: torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pt')"
        ) from error
    except Exception as error:  # a corrupt file fails in many ways inside zip and pickle readers
        raise InputError(f"{path} is not a readable torch file ({one_line(error, 160)}); save it again") from error
    for wrapper in _EMA_FIRST if ema else _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(
            f"{path} does not hold a state dict; expected a dict of tensors, or one under the key "
            f"{', '.join(_WRAPPERS[:3])}; save it with torch.save(model.state_dict(), ...)"
        )
    return {str(name): value for name, value in content.items()}
