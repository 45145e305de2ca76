"""Describes the arguments of each region in a run, and writes regions and arguments as text.

Shapes, strides, dtypes and gradients are found on fake tensors, at the batch size of the training; nothing is computed.
As JSON, a region has its source, the names that the source uses, and its arguments. Another process can compile it from
that, without any pickle.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import importlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from progc.emit.region import Call, Region
from progc.errors import InputError
from progc.ir.binding import InputBinding
from progc.ir.check import GraphRun, empty_like
from progc.ir.deferred import device_of
from progc.ir.program import Mode, Program


@dataclasses.dataclass(frozen=True)
class TensorArgument:
    """A tensor argument of a region: everything that `torch.empty_strided` needs to make one like it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str
    requires_grad: bool
    parameter: bool = False


Argument = TensorArgument | int | float | bool | None


def arguments(
    program: Program,
    mode: Mode,
    calls: Sequence[Call],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
) -> dict[str, tuple[Argument, ...]]:
    """Returns the arguments of every region by its key, as the first of its calls gets them.

    Args:
        args, kwargs: inputs of the network at the training size; only their shapes matter.
        device: device of all tensors; None: their present device, or their future one if they are deferred.
        autocast: dtype of mixed precision, in which regions pass each other other dtypes than those of the weights.
    """
    leaves = InputBinding(program).flatten(args, kwargs)
    found: dict[str, tuple[Argument, ...]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            name: empty_like(tensor, device or device_of(tensor))
            for name, tensor in program.tensors.items()
            if name not in program.tied
        }
        inputs = [empty_like(leaf, device) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        with torch.enable_grad(), _mixed(_device([inputs, tensors]), autocast):
            run = GraphRun(program.graphs[mode], tensors, keep=True)
            run.run(*inputs, enable_io_processing=False)
        for call in calls:
            if call.region.key not in found:
                given = [*(run.env[node] for node in call.values), *(tensors[name] for name in call.tensors)]
                rates = [TensorArgument((), (), torch.float32, _device(given), False) for _ in call.rates]
                own = [isinstance(program.tensors[name], nn.Parameter) for name in call.tensors]
                kinds = [*[False] * len(call.values), *own]
                found[call.region.key] = (*map(_argument, given, kinds), *rates)
    return found


def made(given: Sequence[Argument], seed: int = 0) -> list[Any]:
    """Returns real arguments: small random numbers in floating tensors, zeros in others."""
    generator = torch.Generator().manual_seed(seed)
    result: list[Any] = []
    for item in given:
        if not isinstance(item, TensorArgument):
            result.append(item)
            continue
        tensor = torch.empty_strided(item.shape, item.stride, dtype=item.dtype, device=item.device)
        if item.dtype.is_floating_point:
            tensor.copy_(torch.rand(item.shape, generator=generator) * 0.1 + 0.4)
        else:
            tensor.zero_()
        if item.parameter:  # compiled functions tell parameters from other tensors
            result.append(nn.Parameter(tensor, requires_grad=item.requires_grad))
        else:
            result.append(tensor.requires_grad_(item.requires_grad))
    return result


def _argument(value: Any, parameter: bool) -> Argument:
    if isinstance(value, torch.Tensor):
        return TensorArgument(
            tuple(value.shape), tuple(value.stride()), value.dtype, str(value.device), value.requires_grad, parameter
        )
    assert value is None or isinstance(value, (int, float, bool)), (
        f"a region cannot take an argument of type {type(value).__name__}"
    )
    return value


def _mixed(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    if dtype is None:
        return contextlib.nullcontext()
    # Without autocast's cache of cast weights: a fake tensor must not outlive this run.
    return torch.autocast(device.partition(":")[0], dtype=dtype, cache_enabled=False)


def _device(values: Sequence[Any]) -> str:
    return next(
        (str(leaf.device) for leaf in pytree.tree_leaves(list(values)) if isinstance(leaf, torch.Tensor)), "cpu"
    )


def region_to_json(region: Region, given: tuple[Argument, ...]) -> dict[str, Any] | None:
    """Returns a JSON object; None if the source uses an object without a module name (an operation of the user)."""
    names = {name: _spelled(value) for name, value in region.scope.items()}
    used = {name: text for name, text in names.items() if name in region.source}
    if any(text is None for text in used.values()):
        return None
    return {"key": region.key, "source": region.source, "names": used, "arguments": [_to_json(item) for item in given]}


def region_from_json(data: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[Argument, ...]]:
    """Returns the function and its arguments.

    Raises:
        InputError: a name that is not allowed.
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
        raise InputError(f"region: {text}: expected a name from torch or from Python's operator, math or builtins")
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
