"""A GPU that is not there: tensors without values on the device cuda, on which anything that would wait is an error.

torch's FakeTensorMode computes shapes, dtypes and devices. Whatever needs a value on the host raises
(`DataDependentOutputException`): `item`, `tolist`, the truth of a tensor, `nonzero`. Tensors of two devices in one
operation raise, too, so a device that is written into a graph is found. `Waiting` also refuses copies between host and
device for which the host waits.

Autograd's engine runs a thread for each device, so it needs the device. `backward` calls the same nodes in Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


class WaitedError(Exception):
    """The host would wait for the device."""


class Waiting(TorchDispatchMode):
    """Raises where a copy between host and device makes the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.name().partition(".")[0].removeprefix("aten::")
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if waits and {source.device.type, found.device.type} == {"cpu", "cuda"}:
                raise WaitedError(f"copied from {source.device} to {found.device}")
        return found


@contextlib.contextmanager
def fake_cuda(*, waits: bool = False) -> Iterator[None]:
    """Inside, the device cuda can be used without a GPU.

    Args:
        waits: whether copies may make the host wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU that is not there")
        patch.setattr(Tensor, "backward", backward)
        with FakeTensorMode(allow_non_fake_inputs=True), contextlib.nullcontext() if waits else Waiting():
            yield


def on_cuda(tensor: Tensor) -> Tensor:
    """A tensor of the same kind, shape, dtype and strides on the fake device."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def all_on_cuda(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for named tensors; tied names stay one tensor."""
    made = {id(tensor): on_cuda(tensor) for tensor in tensors.values()}
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def moved(values: Any) -> Any:
    """Nested values with their tensors on the fake device."""
    return pytree.tree_map_only(Tensor, on_cuda, values)


@torch.no_grad()
def backward(loss: Tensor, gradient: Tensor | None = None, **options: Any) -> None:
    """What `Tensor.backward` does: gradients are added to `.grad` of the leaves."""
    assert loss.grad_fn is not None and not any(options.values())
    begin = torch.ones_like(loss) if gradient is None else gradient
    found: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {loss.output_nr: begin}}
    for node in _sorted(loss.grad_fn):
        given = found.pop(node, {})
        if hasattr(node, "variable"):
            if given:
                leaf = node.variable
                leaf.grad = given[0].detach() if leaf.grad is None else leaf.grad + given[0]
            continue
        inputs = [given.get(place) for place in range(len(node._input_metadata))]
        if all(value is None for value in inputs):
            continue
        outputs = node(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for (following, place), value in zip(node.next_functions, outputs, strict=True):
            if following is None or value is None:
                continue
            like = following.variable if hasattr(following, "variable") else following._input_metadata[place]
            value = value.sum_to_size(like.shape) if value.shape != like.shape else value
            value = value.to(like.dtype)
            assert value.device == like.device, f"{node.name()}: a gradient on {value.device} for {like.device}"
            own = found.setdefault(following, {})
            own[place] = value if place not in own else own[place] + value


def _sorted(root: Any) -> list[Any]:
    """All nodes, each before those that it passes gradients to."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return order[::-1]


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call makes the host wait for the device."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        call()
    except (DataDependentOutputException, DynamicOutputShapeException, WaitedError):
        return True
    return False
