"""Networks that freezing is tried on: conditioned blocks with a fixed table, and normalisations of several kinds."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.ir.program import Program
from tests.zoo import perturb


class Conditioned(nn.Module):
    """A block whose two branches are scaled, shifted and gated by a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.width = 2, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulate = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        s1, t1, g1, s2, t2, g2 = self.modulate(F.silu(c)).unsqueeze(1).chunk(6, dim=-1)
        y = F.layer_norm(x, (self.width,)) * (1 + s1) + t1
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + g1 * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = F.layer_norm(x, (self.width,)) * (1 + s2) + t2
        return x + g2 * self.down(F.gelu(self.up(y)))


class Diffuser(nn.Module):
    """Tokens and a time to tokens; positions are a parameter that does not train."""

    def __init__(self, depth: int = 28, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Linear(4, width)
        self.positions = nn.Parameter(torch.randn(1, 5, width), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(7, width)
        self.blocks = nn.ModuleList(Conditioned(width) for _ in range(depth))
        self.last_modulate, self.last = nn.Linear(width, 2 * width), nn.Linear(width, 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.patches(x) + self.positions
        c = self.time(t) + self.labels(y)
        for block in self.blocks:
            x = block(x, c)
        scale, shift = self.last_modulate(F.silu(c)).unsqueeze(1).chunk(2, dim=-1)
        return self.last(F.layer_norm(x, (8,)) * (1 + scale) + shift)


class Normalised(nn.Module):
    """Convolutions with every normalisation that keeps statistics: with and without parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.middle, self.bare = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False)
        self.third, self.instance = nn.Conv2d(6, 6, 1), nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.settled = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def train(self, mode: bool = True) -> Normalised:
        super().train(mode)
        self.settled.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x)))
        x = F.relu(self.bare(self.middle(x)))
        x = F.relu(self.instance(self.third(x)))
        return self.head(self.settled(x).mean((2, 3)))


@functools.cache
def diffuser(depth: int = 3) -> Program:
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 4), torch.randn(2, 3), torch.tensor([1, 4])
    return progc.capture(perturb(Diffuser(depth)), inputs)


def normalised() -> Program:
    torch.manual_seed(0)
    return progc.capture(perturb(Normalised()), (torch.randn(4, 3, 6, 6),))
