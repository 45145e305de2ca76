"""Weight files: safetensors, or a torch file that holds tensors and nothing else. Pickled objects are refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from progc.errors import InputError

# Under these keys trainers keep a state dict beside optimizer state; looked up in this order.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "ema", "module")
_EMA_FIRST = ("state_dict_ema", "model_ema", "ema", *_WRAPPERS)
# Wrappers of torch put these before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path, *, ema: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of a weight file, on the CPU, under the names of the model.

    Args:
        path: a safetensors file, or a file of `torch.save` (read with `weights_only=True`).
        ema: whether the averaged copy is wanted where a torch file holds both.

    Raises:
        InputError: no such file, corrupt, or a file that needs pickle.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; expected weights as .safetensors or .pt")
    tensors = _torch_file(path, ema) if _is_torch(path) else _safetensors_file(path)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies a weight file into `model`, in place; every name must be there and fit.

    A name may be missing where it is tied to one that is present.

    Raises:
        InputError: as `read_weights`; or the file does not fit, with the first names that do not.
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
        path: for the message.
        tensors: what the file holds.
        state: what the model holds.
        model: name of the model, for the message.
        optional: names that the file may leave out.

    Raises:
        InputError: counts and first names of what is missing, unexpected or of another shape.
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
            f"{path} is not a readable safetensors file ({_brief(error)}); it may be cut off or of another format: "
            "write it again"
        ) from error
    return tensors


def _torch_file(path: Path, ema: bool) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled objects beside tensors, or is corrupt, and is not read; where you trust it, convert "
            f"it: torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pt')"
        ) from error
    except Exception as error:  # a corrupt file fails in many ways inside zip and pickle readers
        raise InputError(f"{path} is not a readable torch file ({_brief(error)}); write it again") from error
    for wrapper in _EMA_FIRST if ema else _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(
            f"{path} holds no state dict; expected a dict of tensors, or one under the key "
            f"{', '.join(_WRAPPERS[:3])}; write it with torch.save(model.state_dict(), ...)"
        )
    return {str(name): value for name, value in content.items()}


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
