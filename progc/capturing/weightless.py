"""A model whose parameters have shapes and no memory, while torch.export looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from progc.errors import CaptureError, InputError
from progc.ir.deferred import defer


@contextlib.contextmanager
def without_values(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Puts fake tensors in the place of the parameters that train; they say that they are where the buffers are.

    Yields:
        For the id of each fake parameter its deferred twin, which refuses to be made.

    Raises:
        CaptureError: a buffer has no values, which analysis reads.
    """
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise CaptureError(
                f"buffer {name} of {type(model).__qualname__} is on the meta device; buffers need values: build the "
                "model with progc.models.skeleton.build_skeleton(build, allocate=False)"
            )
    device = next((buffer.device for buffer in model.buffers()), torch.device("cpu"))
    # The mode that export finds in its inputs becomes its own, so it has to take symbolic batch sizes.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    before: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []
    fakes: dict[int, nn.Parameter] = {}
    twins: dict[int, torch.Tensor] = {}
    refuse = _refusing(type(model).__qualname__)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not (parameter.is_meta or parameter.requires_grad):
                continue  # one that does not train has values that are to stay, such as a computed table
            before.append((module._parameters, name, parameter))
            if id(parameter) not in fakes:
                fake = _faked(parameter, mode, device)
                fakes[id(parameter)] = fake
                twins[id(fake)] = defer(refuse, fake)
    try:
        for slots, name, parameter in before:
            slots[name] = fakes[id(parameter)]
        yield twins
    finally:
        for slots, name, parameter in before:
            slots[name] = parameter


def _faked(parameter: nn.Parameter, mode: FakeTensorMode, device: torch.device) -> nn.Parameter:
    where = device if parameter.is_meta else parameter.device
    empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta")
    return nn.Parameter(FakeTensor(mode, empty, where), requires_grad=parameter.requires_grad)


def _refusing(name: str) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        raise InputError(f"{name} was captured without its weights, to plan only; use progc.capture to run it")

    return make
