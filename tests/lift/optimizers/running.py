"""Programs of one's own in training under any optimizer, in float64 and towards fixed random targets."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

import progc
from progc.ir.program import Program
from tests.nets import ConvNet
from tests.training import program

Make = Callable[[Iterable[nn.Parameter]], Optimizer]


@functools.cache
def _conv() -> Program:
    torch.manual_seed(0)
    model = ConvNet().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return progc.capture(model, (torch.randn(6, 3, 8, 8, dtype=torch.float64),))


def fresh(name: str | Program) -> Program:
    """A program with tensors of its own: `mlp`, `lm`, `einsum`, `flat` (tests/training.py), `conv`, or a given one."""
    source = name if isinstance(name, Program) else _conv() if name == "conv" else program(name)
    return with_trained(source, lambda name: True, copied=True)


def with_trained(source: Program, trained: Callable[[str], bool], copied: bool = False) -> Program:
    """The program with new parameters, which share memory unless `copied`, and train where `trained` says so."""
    made: dict[int, torch.Tensor] = {}
    for name, tensor in source.tensors.items():
        value = tensor.detach().clone() if copied else tensor.detach()
        if isinstance(tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=trained(name))
        made.setdefault(id(tensor), value)
    return source.replace(tensors={name: made[id(tensor)] for name, tensor in source.tensors.items()})


def parameters(source: Program, names: Collection[str] | None = None) -> list[nn.Parameter]:
    found = [tensor for name, tensor in source.parameters() if names is None or name in names]
    return [tensor for tensor in found if isinstance(tensor, nn.Parameter) and tensor.requires_grad]


def train(source: Program, optimizers: Optimizer | list[Optimizer], steps: int, after: Any = None) -> torch.Tensor:
    """Trains in place; returns the outputs before the last step."""
    listed = optimizers if isinstance(optimizers, list) else [optimizers]
    module = source.module().train()
    (inputs,) = source.example[0]
    outputs = torch.empty(0)
    for _ in range(steps):
        outputs = module(inputs)
        target = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        for optimizer in listed:
            optimizer.zero_grad()
        F.mse_loss(outputs, target).backward()
        for optimizer in listed:
            optimizer.step()
        if after is not None:
            after(module)
    return outputs.detach()


def twin(source: Program, optimizer: Optimizer, make: Make) -> tuple[Program, Optimizer]:
    """A copy of a program and of the optimizer that trains all of it."""
    other = fresh(source)
    again = make(parameters(other))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, again


def names_of(optimizer: Optimizer, source: Program) -> list[list[str]]:
    """The parameters of each group by name."""
    names = {id(tensor): name for name, tensor in source.parameters()}
    return [[names[id(tensor)] for tensor in group["params"]] for group in optimizer.param_groups]
