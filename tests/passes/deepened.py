"""What the tests of depth growth check on every grown program."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import progc
from progc.ir.check import compare
from progc.ir.graphs import fingerprint
from progc.ir.program import Program
from progc.ir.verify import verify
from progc.passes.grow_depth import GrowDepth
from progc.pipeline.base import PassResult
from tests import zoo

WIDTH = 6


def captured(model: nn.Module) -> Program:
    return progc.capture(zoo.perturb(model), (torch.randn(4, 4),))


def grown(program: Program, **options: Any) -> PassResult:
    before = fingerprint(program), {name: tensor.clone() for name, tensor in program.tensors.items()}
    result = GrowDepth(**options).run(program)
    verify(result.program, "grow-depth", program)
    assert fingerprint(program) == before[0]
    assert all(torch.equal(program.tensors[name], tensor) for name, tensor in before[1].items())
    return result


def check_lossless(program: Program, result: PassResult) -> None:
    assert result.lossless is True
    assert compare(program, result.program, seed=0).max_rel < 1e-9


def fresh(result: PassResult) -> list[str]:
    assert result.lift is not None
    names = [entry.name for entry in result.lift.tensors if entry.fresh]
    return [name for name in names if result.program.specs[name].kind == "parameter"]


def check_alive(result: PassResult, steps: int = 2) -> None:
    module = copy.deepcopy(result.program.module()).train()
    args, kwargs = copy.deepcopy(result.program.example)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    alive: set[str] = set()
    for _ in range(steps):
        leaves = [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]
        loss = sum((leaf * torch.randn(leaf.shape)).mean() for leaf in leaves if leaf.requires_grad)
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        named = dict(module.named_parameters())
        alive = {name for name, parameter in named.items() if parameter.grad is not None and parameter.grad.any()}
        optimizer.step()
    assert [name for name in fresh(result) if name in named and name not in alive] == []
