"""Optimizer state in files: tensors as safetensors, everything else as JSON; no pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from progc.errors import InputError
from progc.optimizers.saved import load_optimizer_state, optimizer_state
from progc.program import Program
from progc.save import output_folder, write_json
from progc.tensor_file import write_tensors
from progc.weights import read_weights

_TENSORS, _REST = "optimizer.safetensors", "optimizer.json"
_FORMAT = 1


def save_optimizer(folder: Path | str, optimizer: Optimizer, program: Program) -> None:
    """Writes `optimizer.safetensors` and `optimizer.json` into a new or empty folder, whole or not at all.

    Raises:
        InputError: the folder is taken or cannot be written, the optimizer holds parameters that the program does not
            have, or something in it is neither a tensor nor plain data.
    """
    tensors: dict[str, torch.Tensor] = {}
    data = _encoded(optimizer_state(optimizer, program), "", tensors)
    with output_folder(Path(folder)) as temporary:
        write_tensors(temporary / _TENSORS, tensors)
        write_json(temporary / _REST, {"format_version": _FORMAT, "optimizer": type(optimizer).__name__, "held": data})


def load_optimizer(folder: Path | str, optimizer: Optimizer, program: Program) -> None:
    """Reads what `save_optimizer` wrote, as `load_optimizer_state` does.

    Raises:
        InputError: no such files, files of another kind or of another optimizer, or what `load_optimizer_state` says.
    """
    path = Path(folder) / _REST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind, held = data["optimizer"], data["held"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no optimizer state ({error}); expected what save_optimizer wrote") from error
    if kind != type(optimizer).__name__:
        raise InputError(f"{path} holds the state of {kind}; the optimizer is {type(optimizer).__name__}")
    tensors = read_weights(Path(folder) / _TENSORS)
    try:
        saved = _decoded(held, tensors)
    except KeyError as error:
        raise InputError(f"{path} names tensor {error}, which {_TENSORS} does not hold; save it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no optimizer state ({error}); expected what save_optimizer wrote") from error
    load_optimizer_state(optimizer, program, saved)


def _encoded(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; tensors are put into `tensors`, and what JSON does not have is spelled out."""
    if isinstance(value, torch.Tensor):
        tensors[where] = value.detach()
        return {"tensor": where}
    if isinstance(value, Mapping):
        return {
            "dict": {key: _encoded(item, f"{where}/{key}" if where else key, tensors) for key, item in value.items()}
        }
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"optimizer state {where} is a {type(value).__name__}; expected tensors, numbers and text")


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: _decoded(item, tensors) for key, item in content.items()}
    items = [_decoded(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
