"""Data as JSON: nested values with tensors beside them, and objects that are checked against a dataclass.

Importing it does not import torch.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from progc.errors import InputError

if TYPE_CHECKING:
    import torch


def encode(value: Any, what: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Converts nested data to JSON and a flat dict of its tensors; `decode` reverses it.

    JSON has no tuples, infinities or keys that are not text, so every container and special number is tagged with its
    kind, as in `{"tuple": [...]}`.

    Args:
        value: dicts, lists and tuples of tensors, numbers (NaN and infinities included), text, booleans and None.
        what: what the value is, for the message.

    Returns:
        The JSON data, and the tensors by their path in `value`, such as `state/0/exp_avg`.

    Raises:
        InputError: `value` holds an object of another type; the message gives its path.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _encoded(value, "", tensors, what), tensors


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Returns the value that `encode` converted.

    Raises:
        KeyError: a tensor is missing.
        ValueError, TypeError, AttributeError: `value` is not what `encode` returns.
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
    torch = sys.modules.get("torch")  # a value with tensors has imported it
    if torch is not None and isinstance(value, torch.Tensor):
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
    """Returns a JSON object as arguments of a dataclass.

    Args:
        cls: the dataclass.
        data: the object.
        what: what the object is, for the message.

    Raises:
        InputError: the object has a key that is not a field of `cls`.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = data.keys() - set(names)
    if unknown:
        raise InputError(f"{what}: unknown key `{sorted(unknown)[0]}`; expected {', '.join(names)}")
    return dict(data)
