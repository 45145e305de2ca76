"""Saves and loads optimizer state by parameter name, where torch's `state_dict` numbers parameters; no pickle.

Parked state of frozen parameters is included. On disk, tensors are safetensors and everything else is JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from progc.errors import InputError
from progc.files.json import decode, encode
from progc.files.reading import MAX_GIVEN, read_object
from progc.files.weights import read_weights
from progc.files.writing import output_folder, write_json
from progc.ir.program import Program
from progc.ir.tensor_file import write_tensors
from progc.lift.optimizers.holdings import Holdings, commit, holdings, settled

_TENSORS, _REST = "optimizer.safetensors", "optimizer.json"
_FORMAT = 1
_OWN = ("foreach", "fused")
"""Options that say how the optimizer at hand computes a step on its device, and not what; they are not loaded."""


def optimizer_state(optimizer: Optimizer, program: Program) -> dict[str, Any]:
    """Returns the groups and the state of an optimizer of `program`, by parameter name; tensors are not copied.

    Returns:
        `groups`: `[{"names": [...], "options": {"lr": ...}}, ...]`; `parked`: names of frozen parameters to their
        group; `state`: `{"head.weight": {"step": ..., "exp_avg": ...}}`, parked parameters included.

    Raises:
        InputError: the optimizer holds parameters that the program does not have.
    """
    found = holdings(optimizer, program)
    return {
        "groups": [
            {"names": list(names), "options": dict(options)}
            for names, options in zip(found.groups, found.options, strict=True)
        ],
        "parked": dict(found.parked),
        "state": {name: dict(own) for name, own in found.state.items()},
    }


def load_optimizer_state(optimizer: Optimizer, program: Program, saved: Mapping[str, Any]) -> None:
    """Loads the result of `optimizer_state`; tensors are copied, and the optimizer gets the saved groups.

    Parameters that are frozen now are parked, and parked ones that train now return to their group. So the set of
    trained parameters may change between saving and loading.

    Args:
        optimizer: an optimizer of the same class over some or all parameters of `program`, in any groups.
        program: the program.
        saved: the result of `optimizer_state`.

    Raises:
        InputError: `saved` is something else, the program does not have one of its parameters, a parameter of the
            optimizer was not saved, or a moment has another shape. Nothing is changed then.
    """
    if not {"groups", "parked", "state"} <= saved.keys():
        raise InputError(
            f"optimizer state: expected the keys groups, parked and state, found {', '.join(map(str, saved))}; give "
            "what optimizer_state returned (torch's own state_dict goes to optimizer.load_state_dict)"
        )
    present = holdings(optimizer, program)
    groups = [list(group["names"]) for group in saved["groups"]]
    options = []
    for index, group in enumerate(saved["groups"]):
        base = present.options[index] if index < len(present.options) else optimizer.defaults
        options.append({**base, **group["options"], **{key: base[key] for key in _OWN if key in base}})
    found = settled(Holdings(options, groups, dict(saved["parked"]), dict(saved["state"])), program)
    homes = found.homes
    left = [name for name in present.homes if name not in homes]
    if left:
        raise InputError(
            f"optimizer state: nothing was saved for {left[0]} ({len(left)} parameters in all); load it into an "
            "optimizer over the same parameters"
        )
    for name, own in found.state.items():
        if name not in homes:
            raise InputError(f"optimizer state for {name}: no group holds it; leave it out")
        here = program.tensors[name].device
        device = here if any(options[homes[name]].get(key) for key in ("capturable", "fused")) else None
        # Step counts stay on their device, unless the optimizer needs them on the device of the parameter.
        found.state[name] = {key: _copied(v, device if key == "step" else here) for key, v in own.items()}
    commit(optimizer, program, found)


def _copied(value: Any, device: torch.device | None) -> Any:
    return value.detach().to(device or value.device, copy=True) if isinstance(value, torch.Tensor) else value


def save_optimizer(folder: Path | str, optimizer: Optimizer, program: Program) -> None:
    """Writes `optimizer.safetensors` and `optimizer.json` into a new or empty folder, atomically.

    Raises:
        InputError: the folder is not empty or cannot be written, the optimizer holds parameters that the program does
            not have, or its state has a value that is neither a tensor nor plain data.
    """
    data, tensors = optimizer_as_data(optimizer, program)
    with output_folder(Path(folder)) as temporary:
        write_tensors(temporary / _TENSORS, tensors)
        write_json(temporary / _REST, data)


def load_optimizer(folder: Path | str, optimizer: Optimizer, program: Program) -> None:
    """Loads a folder written by `save_optimizer`.

    Raises:
        InputError: a file is missing, damaged or of another optimizer; or see `load_optimizer_state`.
    """
    path = Path(folder) / _REST
    try:
        data = read_object(path, MAX_GIVEN, links=True)
    except InputError as error:
        raise InputError(f"{path} is not optimizer state ({error}); expected what save_optimizer wrote") from error
    load_optimizer_data(data, lambda: read_weights(Path(folder) / _TENSORS), optimizer, program, path)


def optimizer_as_data(optimizer: Optimizer, program: Program) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns the result of `optimizer_state` as a JSON object and a flat dict of its tensors.

    Raises:
        InputError: the optimizer holds parameters that the program does not have, or its state has a value that is
            neither a tensor nor plain data.
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
    """Loads the result of `optimizer_as_data`.

    Args:
        data: the JSON object.
        tensors: returns the tensors; called if `data` fits the optimizer.
        optimizer: see `load_optimizer_state`.
        program: the program.
        path: the file of the JSON object, for messages.

    Raises:
        InputError: the data is something else or of another optimizer; or see `load_optimizer_state`.
    """
    try:
        kind, held = data["optimizer"], data["held"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not optimizer state ({error}); expected what save_optimizer wrote") from error
    if kind != type(optimizer).__name__:
        raise InputError(f"{path} holds the state of {kind}; expected that of {type(optimizer).__name__}")
    found = tensors()
    try:
        saved = decode(held, found)
    except KeyError as error:
        raise InputError(f"{path} names tensor {error}, which {_TENSORS} does not hold; save it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not optimizer state ({error}); expected what save_optimizer wrote") from error
    load_optimizer_state(optimizer, program, saved)
