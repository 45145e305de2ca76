"""Reading an output folder: JSON files and safetensors headers, by hand. Imports no torch and no user code."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from progc.errors import InputError
from progc.files.small import open_regular, read_object

_LENGTH = struct.Struct("<Q")  # a safetensors file starts with the size of its JSON header in bytes
_MAX_HEADER = 100_000_000


def read_folder(folder: Path) -> dict[str, Any]:
    """Report, plan (None if there is none), and per safetensors file the dtype and shape of each tensor.

    Raises:
        InputError: not an output folder, or a file in it is damaged.
    """
    if not (folder / "report.json").is_file():
        raise InputError(f"{folder} is a folder without report.json; expected one written by --out, or a model")
    return {
        "folder": str(folder),
        "report": _read_json(folder / "report.json"),
        "plan": _read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None,
        "tensors": {path.name: _header(path) for path in sorted(folder.glob("*.safetensors"))},
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except InputError as error:
        raise InputError(f"{error}; write the folder again") from error


def _header(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
            if len(text) < length:
                raise ValueError("it ends in its header")
            header = json.loads(text)
        return {
            name: {"dtype": item["dtype"], "shape": item["shape"]}
            for name, item in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); write the folder again") from error
