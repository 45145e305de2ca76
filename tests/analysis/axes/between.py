"""Networks that put an op between two layers, and what a case of the rule tests is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8
Op = Callable[[nn.Module, Tensor], Tensor]


class Between(nn.Module):
    """Ops over f64[2, 5, 8] tokens, each between a linear layer and one or two others, on axes of their own."""

    def __init__(self, ops: Sequence[Op], outs: Sequence[int], setup: Callable[[nn.Module], None] | None) -> None:
        super().__init__()
        self.ops = ops
        self.into = nn.ModuleList(nn.Linear(6, WIDTH) for _ in ops)
        self.out = nn.ModuleList(nn.Linear(size, 3) if size else nn.Identity() for size in outs)
        if setup is not None:
            setup(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        results = [op(self, into(x)) for op, into in zip(self.ops, self.into, strict=True)]
        return [
            out(result if result.is_floating_point() else result.to(x.dtype))
            for out, result in zip(self.out, results, strict=True)
        ]


class BetweenConvs(Between):
    """The same over f64[2, 8, 6, 6] images."""

    def __init__(self, ops: Sequence[Op], outs: Sequence[int], setup: Callable[[nn.Module], None] | None) -> None:
        super().__init__(ops, outs, setup)
        self.into = nn.ModuleList(nn.Conv2d(3, WIDTH, 1) for _ in ops)
        self.out = nn.ModuleList(nn.Conv2d(size, 3, 1) if size else nn.Identity() for size in outs)


class Case:
    """One op: `grows` says whether some axis of the layer before it can be widened."""

    def __init__(
        self, name: str, op: Op, out: int = WIDTH, *, grows: bool, setup: Callable[[nn.Module], None] | None = None
    ) -> None:
        self.name, self.op, self.out, self.grows, self.setup = name, op, out, grows, setup


def add(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, name, value)


def table(shape: Sequence[int]) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "w", nn.Parameter(torch.randn(*shape)))


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
