"""Gradients of a program in float64, by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from progc.ir.check import _default_dtype, _Float64, example_inputs
from progc.ir.program import Mode, Program


class _Differentiable(_Float64):
    """The float64 interpreter with parameters that ask for gradients."""

    def __init__(self, program: Program, mode: Mode) -> None:
        super().__init__(program, mode)
        self.leaves = {
            name: tensor.detach().double().requires_grad_()
            for name, tensor in program.parameters()
            if tensor.is_floating_point()
        }

    def fetch(self, node: fx.Node) -> Any:
        return self.leaves[node.target] if node.op == "get_attr" and node.target in self.leaves else super().fetch(node)


def gradients(program: Program, mode: Mode = "eval", seed: int = 0) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random linear function of all floating outputs; zero where there is none."""
    interpreter = _Differentiable(program, mode)
    inputs = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in example_inputs(program, seed)]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), _default_dtype(torch.float64):
        torch.manual_seed(seed)
        outputs = interpreter.run(*inputs, enable_io_processing=False)
        outputs = [out for out in outputs if isinstance(out, torch.Tensor) and out.is_floating_point()]
        loss = sum(((torch.randn(out.shape, generator=generator) * out).sum() for out in outputs), torch.zeros(()))
        names, leaves = list(interpreter.leaves), list(interpreter.leaves.values())
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for name, leaf, grad in zip(names, leaves, found, strict=True)
    }


def in_float64(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in float64; tied names stay tied."""
    made: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        made.setdefault(id(tensor), tensor.detach().double() if tensor.is_floating_point() else tensor)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}
