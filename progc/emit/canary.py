"""Checks before training that compiled functions have the right gradients on this machine.

Some builds of the compiler return the right loss with wrong gradients, or no gradient for a layer that was frozen and
then trains again. Both are found with a small function made of the operations of networks, by comparison with eager
mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from progc.errors import CheckError

TOLERANCE = 1e-3
"""Largest difference relative to the largest entry. Kernels with another order of summation stay far below it."""


def check_compiler(device: str = "cpu", **options: Any) -> None:
    """Compiles a small function, with its first layer frozen and then not, and compares its gradients with eager mode.

    Args:
        device: where to run it.
        options: options of `torch.compile` that training will use.

    Raises:
        CheckError: a gradient is wrong or missing; train without compiling on this machine.
    """
    _checked(device, tuple(sorted((name, repr(value)) for name, value in options.items())), _Holder(options))


class _Holder:
    """Options that are ignored by the cache, whose key is their text."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder)


@functools.cache
def _checked(device: str, text: tuple[tuple[str, str], ...], holder: _Holder) -> None:
    compare(torch.compile(_network, **{"fullgraph": True, "dynamic": False, **holder.options}), device)


def compare(function: Callable[..., torch.Tensor], device: str = "cpu") -> None:
    """Compares the gradients of a compiled form of the canary with those of the canary itself.

    Raises:
        CheckError: they differ, or one is missing.
    """
    for frozen in (True, False):
        tensors = _tensors(device)
        tensors[1].requires_grad_(not frozen)
        wanted = [(tensor, tensor.requires_grad) for tensor in tensors]
        expected = torch.autograd.grad(_network(*tensors), [tensor for tensor, learns in wanted if learns])
        found = torch.autograd.grad(
            function(*tensors), [tensor for tensor, learns in wanted if learns], allow_unused=True
        )
        state = "frozen" if frozen else "trained again after it was frozen"
        for eager, compiled in zip(expected, found, strict=True):
            if compiled is None:
                raise CheckError(
                    f"torch.compile returns no gradient on this machine for a layer that is {state}; {_WAY_OUT}"
                )
            error = ((eager - compiled).abs().max() / eager.abs().max()).item()
            if not error <= TOLERANCE:
                raise CheckError(
                    f"torch.compile returns wrong gradients on this machine (relative difference {error:.1e}, for "
                    f"a layer that is {state}); {_WAY_OUT}"
                )


_WAY_OUT = "train without torch.compile (how=eager), or install another build of torch"


def _tensors(device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6, 16), (48, 16), (16, 16), (16,), (32, 16), (16, 32)]
    made = [torch.randn(shape, generator=generator).div_(shape[-1] ** 0.5).to(device) for shape in shapes]
    return [made[0], *(tensor.requires_grad_() for tensor in made[1:])]


def _network(
    x: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, norm: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """A transformer block and the mean square of its output."""
    batch, tokens, width = x.shape
    q, k, v = F.linear(x, qkv).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
    x = x + F.linear(mixed, out)
    x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, [width], norm), up)), down)
    return x.square().mean()
