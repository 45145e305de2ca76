"""Regions as text: source, names it uses, arguments. Enough to compile them in another process, without any pickle."""

from __future__ import annotations

import builtins
import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from progc.emit.region import Region
from progc.emit.specs import Argument, TensorArgument
from progc.errors import InputError


def region_to_json(region: Region, given: tuple[Argument, ...]) -> dict[str, Any] | None:
    """A JSON object; None if the source uses something that has no name in a module (an operation of the user's)."""
    names = {name: _spelled(value) for name, value in region.scope.items()}
    used = {name: text for name, text in names.items() if name in region.source}
    if any(text is None for text in used.values()):
        return None
    return {"key": region.key, "source": region.source, "names": used, "arguments": [_to_json(item) for item in given]}


def region_from_json(data: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[Argument, ...]]:
    """The function and its arguments.

    Raises:
        InputError: a name that this process does not have.
    """
    scope = {name: _found(text) for name, text in data["names"].items()}
    exec(compile(data["source"], f"<progc region {data['key'][:12]}>", "exec"), scope)  # written by region_to_json
    return scope["region"], tuple(_from_json(item) for item in data["arguments"])


def _spelled(value: Any) -> str | None:
    """`module:name`, a number, or None."""
    if isinstance(value, types.ModuleType):
        return f"{value.__name__}:"
    if isinstance(value, (int, float)):
        return repr(value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if isinstance(module, str) and name:
        try:
            if _found(f"{module}:{name}") is value:
                return f"{module}:{name}"
        except (InputError, AttributeError):
            return None
    return None


def _found(text: str) -> Any:
    module, colon, name = text.partition(":")
    if not colon:
        return float(text) if text.lstrip("-") in ("inf", "nan") or "." in text or "e" in text else int(text)
    if module == "builtins":
        return getattr(builtins, name)
    if module.partition(".")[0] not in ("torch", "_operator", "operator", "math"):
        raise InputError(f"region: {text} is no name of torch or of Python's own modules")
    value: Any = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        value = getattr(value, part)
    return value


def _to_json(item: Argument) -> Any:
    if not isinstance(item, TensorArgument):
        return item
    return {
        "shape": list(item.shape),
        "stride": list(item.stride),
        "dtype": str(item.dtype).removeprefix("torch."),
        "device": item.device,
        "requires_grad": item.requires_grad,
        "parameter": item.parameter,
    }


def _from_json(item: Any) -> Argument:
    if not isinstance(item, Mapping):
        return item
    return TensorArgument(
        tuple(item["shape"]),
        tuple(item["stride"]),
        getattr(torch, item["dtype"]),
        item["device"],
        item["requires_grad"],
        item["parameter"],
    )
