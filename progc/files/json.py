"""JSON in files: read with bounds, written the same way every time, keys checked.

Small files that a user points at: read whole, within bounds, and only where they are regular files.

A pipe or a device would keep a command waiting for ever. A link is followed: the user gave its name. Files of a
checkpoint, which may come from elsewhere as a folder, are read by progc/files/reading.py, which follows none.

Nested data as JSON and tensors beside it; what JSON does not have is spelled out, so that all comes back.

Keys of a JSON object, checked against the fields of a dataclass.
"""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from progc.errors import InputError
from progc.files.reading import parse_object

if TYPE_CHECKING:
    import torch

LIMIT = 256 << 20
"""Bytes."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; never waits.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL in its name
        raise OSError(str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, limit: int = LIMIT) -> str:
    """A text in UTF-8.

    Raises:
        OSError: as `open_regular`.
        ValueError: it has more than `limit` bytes, or is no UTF-8.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if data is None or len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data.decode("utf-8")


def read_object(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """A JSON object with numbers that are numbers, nested at most 64 deep.

    Raises:
        InputError: anything else; names `path`.
    """
    try:
        text = read_text(path, limit)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_object(text, path)


def encode(value: Any, what: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A value as JSON data, and the tensors that it mentions, by the places they stand at.

    Args:
        value: dicts, lists and tuples of tensors, numbers (also infinite ones and NaN), text, booleans and None.
        what: it is, for the message.

    Raises:
        InputError: something else is in it; says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _encoded(value, "", tensors, what), tensors


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `encode` was given.

    Raises:
        KeyError: a tensor is not there.
        ValueError, TypeError, AttributeError: not what `encode` gives.
    """
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: decode(item, tensors) for key, item in content.items()}
    if kind == "counter":
        return Counter(decode({"items": content}, tensors))
    if kind == "items":
        return {decode(key, tensors): decode(item, tensors) for key, item in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"unknown kind {kind!r}")
    items = [decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _encoded(value: Any, where: str, tensors: dict[str, torch.Tensor], what: str) -> Any:
    import torch  # here, so that plans and reports are read without it

    if isinstance(value, torch.Tensor):
        while where in tensors:  # a key may hold a slash
            where += "+"
        tensors[where] = value.detach()
        return {"tensor": where}
    if isinstance(value, Mapping):
        base = f"{where}/" if where else ""
        if all(isinstance(key, str) for key in value) and not isinstance(value, Counter):
            return {"dict": {key: _encoded(item, f"{base}{key}", tensors, what) for key, item in value.items()}}
        pairs = enumerate(value.items())
        kind = "counter" if isinstance(value, Counter) else "items"  # as the milestones of a learning-rate scheduler
        return {
            kind: [
                [_encoded(key, f"{base}{index}.key", tensors, what), _encoded(item, f"{base}{index}", tensors, what)]
                for index, (key, item) in pairs
            ]
        }
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(item, f"{where}/{index}", tensors, what) for index, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{what} {where} is a {type(value).__name__}; expected tensors, numbers and text")


def known_fields(cls: Any, data: Mapping[str, Any], what: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = data.keys() - set(names)
    if unknown:
        raise InputError(f"{what}: unknown key `{sorted(unknown)[0]}`; keys are {', '.join(names)}")
    return dict(data)
