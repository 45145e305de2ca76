"""Small float64 networks in training, and their grown versions with optimizer state and rates carried over."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import progc
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.lift.moments import load_state_by_name, optimizer_state_by_name
from progc.lift.rates import RateFactors, learning_rate_factors
from tests.nets import EinsumTransformer, FlatMixer

LR, DECAY, EPS = 1e-3, 0.1, 1e-6


class TinyLM(nn.Module):
    """Pre-norm language model with attention of its own, LayerNorm and a head tied to the embedding."""

    def __init__(self, width: int = 8, heads: int = 2, vocabulary: int = 13) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, width)
        self.norm1, self.norm2, self.final = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return self.head(self.final(x + self.down(F.gelu(self.up(self.norm2(x))))))


def _build(name: str) -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    if name == "mlp":
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4)), torch.randn(
            16, 6, generator=generator
        )
    if name == "lm":
        return TinyLM(), torch.randint(0, 13, (8, 6), generator=generator)
    if name == "einsum":
        return EinsumTransformer(dim=8, heads=2, hidden=12, depth=2), torch.randn(8, 6, 10, generator=generator)
    return FlatMixer(channels=6, hidden=10, depth=2), torch.randn(8, 3, 16, 16, generator=generator)


@functools.cache
def program(name: str) -> Program:
    """A float64 program with arbitrary biases and gains; its example is the whole training set."""
    torch.manual_seed(0)
    model, inputs = _build(name)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return progc.capture(model, (inputs.double() if inputs.is_floating_point() else inputs,))


class Run:
    """A program in training with AdamW towards fixed random targets, one parameter group per parameter."""

    def __init__(self, program: Program, factors: Mapping[str, RateFactors] | None = None) -> None:
        # The module trains copies: programs of a test process are shared.
        tensors = {id(tensor): tensor.detach().clone() for tensor in program.tensors.values()}
        self.program = program.replace(tensors={name: tensors[id(t)] for name, t in program.tensors.items()})
        self.module: ProgramModule = self.program.module().train()
        (self.inputs,) = program.example[0]
        factors = factors or {}
        groups: list[dict[str, Any]] = []
        for name, parameter in self.module.named_parameters():
            own = factors.get(name, RateFactors())
            groups.append(
                {
                    "params": [parameter],
                    "lr": LR * own.lr,
                    "weight_decay": DECAY * own.weight_decay,
                    "eps": EPS * own.eps,
                }
            )
        self.optimizer = torch.optim.AdamW(groups)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Takes gradients of the loss; also left in the parameters."""
        self.optimizer.zero_grad()
        output = self.module(self.inputs)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        F.mse_loss(output, target).backward()
        found = {}
        for name, parameter in self.module.named_parameters():
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
        return found

    def train(self, steps: int) -> Run:
        for _ in range(steps):
            self.gradients()
            self.optimizer.step()
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every name of the program, aliases too, with its present tensor."""
        named = dict(self.module.named_parameters(remove_duplicate=False)) | dict(self.module.named_buffers())
        return {name: named[name].detach() for name in self.program.tensors}

    def outputs(self) -> torch.Tensor:
        with torch.no_grad():
            return self.module(self.inputs)

    def state(self) -> dict[str, dict[str, Any]]:
        return optimizer_state_by_name(self.optimizer, self.module.named_parameters())

    def grown(self, grown: Program, lift: Lift, *, moments: bool = True) -> Run:
        """The grown network where this run stands, with mapped moments or a fresh optimizer."""
        run = Run(grown.replace(tensors=lift.apply(self.tensors())), learning_rate_factors(lift))
        if moments:
            load_state_by_name(run.optimizer, run.module.named_parameters(), lift.moments(self.state()))
        return run
