"""Nested data as JSON and tensors beside it; what JSON does not have is spelled out, so that all comes back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from progc.errors import InputError


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
