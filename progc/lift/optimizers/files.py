"""Optimizer state in files: tensors as safetensors, everything else as JSON; no pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from progc.errors import InputError
from progc.files.encoding import decode, encode
from progc.files.small import read_object
from progc.files.weights import read_weights
from progc.files.writing import output_folder, write_json
from progc.ir.program import Program
from progc.ir.tensor_file import write_tensors
from progc.lift.optimizers.saved import load_optimizer_state, optimizer_state

_TENSORS, _REST = "optimizer.safetensors", "optimizer.json"
_FORMAT = 1


def save_optimizer(folder: Path | str, optimizer: Optimizer, program: Program) -> None:
    """Writes `optimizer.safetensors` and `optimizer.json` into a new or empty folder, whole or not at all.

    Raises:
        InputError: the folder is taken or cannot be written, the optimizer holds parameters that the program does not
            have, or something in it is neither a tensor nor plain data.
    """
    data, tensors = optimizer_as_data(optimizer, program)
    with output_folder(Path(folder)) as temporary:
        write_tensors(temporary / _TENSORS, tensors)
        write_json(temporary / _REST, data)


def load_optimizer(folder: Path | str, optimizer: Optimizer, program: Program) -> None:
    """Reads what `save_optimizer` wrote, as `load_optimizer_state` does.

    Raises:
        InputError: no such files, files of another kind or of another optimizer, or what `load_optimizer_state` says.
    """
    path = Path(folder) / _REST
    try:
        data = read_object(path)
    except InputError as error:
        raise InputError(f"{path} is no optimizer state ({error}); expected what save_optimizer wrote") from error
    load_optimizer_data(data, lambda: read_weights(Path(folder) / _TENSORS), optimizer, program, path)


def optimizer_as_data(optimizer: Optimizer, program: Program) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `optimizer_state` gives, as a JSON object and the tensors that it mentions by name.

    Raises:
        InputError: the optimizer holds parameters that the program does not have, or something in it is neither a
            tensor nor plain data.
    """
    data, tensors = encode(optimizer_state(optimizer, program), "optimizer state")
    return {"format_version": _FORMAT, "optimizer": type(optimizer).__name__, "held": data}, tensors


def load_optimizer_data(
    data: Any,
    tensors: Callable[[], Mapping[str, torch.Tensor]],
    optimizer: Optimizer,
    program: Program,
    path: Path,
) -> None:
    """Puts back what `optimizer_as_data` gave, as `load_optimizer_state` does.

    Args:
        tensors: gives the tensors, once the JSON object is known to fit.
        path: where the JSON object comes from, for messages.

    Raises:
        InputError: data of another kind or of another optimizer, or what `load_optimizer_state` says.
    """
    try:
        kind, held = data["optimizer"], data["held"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no optimizer state ({error}); expected what save_optimizer wrote") from error
    if kind != type(optimizer).__name__:
        raise InputError(f"{path} holds the state of {kind}; the optimizer is {type(optimizer).__name__}")
    found = tensors()
    try:
        saved = decode(held, found)
    except KeyError as error:
        raise InputError(f"{path} names tensor {error}, which {_TENSORS} does not hold; save it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no optimizer state ({error}); expected what save_optimizer wrote") from error
    load_optimizer_state(optimizer, program, saved)
