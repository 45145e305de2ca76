"""Networks that are hard on chain detection: flat forwards, split lists, skips, shared parts, odd names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Flat(nn.Module):
    """A causal transformer in one forward; all parameters are attributes `wq_0`, `wq_1`, ..."""

    def __init__(self, depth: int = 4, dim: int = 16, drop: float = 0.1) -> None:
        super().__init__()
        self.depth, self.dim, self.drop = depth, dim, drop
        self.embed = nn.Parameter(torch.randn(8, dim))
        self.head = nn.Parameter(torch.randn(dim, 5))
        shapes = {
            "gain": (dim,),
            "qkv": (3, 2, dim // 2, dim),
            "out": (2, dim // 2, dim),
            "up": (dim, 24),
            "down": (24, dim),
        }
        for name, shape in shapes.items():
            for block in range(depth):
                self.register_parameter(f"{name}_{block}", nn.Parameter(torch.randn(shape) * 0.2))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.embed
        mask = torch.ones(x.shape[1], x.shape[1]).tril()
        for block in range(self.depth):
            h = F.layer_norm(x, (self.dim,), getattr(self, f"gain_{block}"))
            q, k, v = torch.einsum("btd,ched->cbhte", h, getattr(self, f"qkv_{block}")).unbind(0)
            scores = torch.einsum("bhte,bhse->bhts", q, k) / math.sqrt(self.dim // 2)
            scores = scores.masked_fill(mask == 0, -1e9).softmax(-1)
            h = torch.einsum("bhts,bhse,hed->btd", scores, v, getattr(self, f"out_{block}"))
            x = x + F.dropout(h, self.drop, self.training)
            h = F.gelu(F.layer_norm(x, (self.dim,)) @ getattr(self, f"up_{block}")) @ getattr(self, f"down_{block}")
            x = x + F.dropout(h, self.drop, self.training)
        return x.mean(1) @ self.head


class Alternating(nn.Module):
    """Every second block shifts its tokens; parameters in a ParameterDict, the number inside the name."""

    def __init__(self, depth: int = 4, dim: int = 8) -> None:
        super().__init__()
        self.depth = depth
        self.p = nn.ParameterDict(
            {
                f"blk{i}_{part}": nn.Parameter(torch.randn(dim, dim) * 0.2)
                for i in range(depth)
                for part in ("in", "out")
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            h = x.roll(1, 1) if i % 2 else x
            h = torch.tanh(h @ self.p[f"blk{i}_in"]) @ self.p[f"blk{i}_out"]
            x = x + (h.roll(-1, 1) if i % 2 else h)
        return x


class SplitLists(nn.Module):
    """A block is spread over three module lists."""

    def __init__(self, depth: int = 3, dim: int = 16) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.mixers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 24), nn.GELU(), nn.Linear(24, dim)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for norm, mixer, mlp in zip(self.norms, self.mixers, self.mlps, strict=True):
            x = x + mixer(norm(x))
            x = x + mlp(x)
        return x


class FlatNorm(nn.Module):
    """Flat pre-activation blocks whose BatchNorm counters are read by the train graph alone."""

    def __init__(self, depth: int = 3, width: int = 4) -> None:
        super().__init__()
        self.depth = depth
        for i in range(depth):
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.add_module(f"conv{i}", nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = x + getattr(self, f"conv{i}")(F.relu(getattr(self, f"bn{i}")(x)))
        return x


class Lettered(nn.Module):
    """Repeats whose parameters have names that end in letters, or in the digits that are given."""

    def __init__(self, letters: str = "abc", dim: int = 8) -> None:
        super().__init__()
        self.letters = letters
        for letter in letters:
            self.register_parameter(f"w_{letter}", nn.Parameter(torch.randn(dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        for letter in self.letters:
            x = x + torch.tanh(x @ getattr(self, f"w_{letter}"))
        return x


class Misaligned(nn.Module):
    """Repeats whose parameters are numbered apart: `w.0` goes with `b1`."""

    def __init__(self, depth: int = 3, dim: int = 8) -> None:
        super().__init__()
        self.depth = depth
        self.w = nn.ParameterList(nn.Parameter(torch.randn(dim, dim)) for _ in range(depth))
        for i in range(depth):
            self.register_parameter(f"b{i + 1}", nn.Parameter(torch.randn(dim)))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            x = x + torch.tanh(x @ self.w[i]) * getattr(self, f"b{i + 1}")
        return x


class FlatSkips(nn.Module):
    """Every exit also goes to the end."""

    def __init__(self, depth: int = 4, dim: int = 8) -> None:
        super().__init__()
        self.depth = depth
        for i in range(depth):
            self.register_parameter(f"w_{i}", nn.Parameter(torch.randn(dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i in range(self.depth):
            x = x + torch.tanh(x @ getattr(self, f"w_{i}"))
            kept.append(x)
        return torch.stack(kept).sum(0)


class Residual(nn.Module):
    """x + W tanh(V x), times a scale of its own."""

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(dim, dim), nn.Linear(dim, dim), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.a(x))) * self.scale


class Masked(nn.Module):
    """A residual block whose forward holds a constant tensor."""

    def __init__(self, mask: list[float]) -> None:
        super().__init__()
        self.mask, self.a = mask, nn.Linear(len(mask), len(mask))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.a(x)) * torch.tensor(self.mask)


class Skips(nn.Module):
    """Blocks in a list; the exit of block 1 also goes to the head, or the stem does."""

    def __init__(self, kept: int = 1, dim: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(dim) for _ in range(4))
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            kept = x if i == self.kept else kept
        return x * kept


class TwoStreams(nn.Module):
    """Blocks that carry two values, one input and one table that all share, and one input of their own each."""

    class Block(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(dim, dim), nn.Linear(dim, dim)

        def forward(self, x: Tensor, y: Tensor, condition: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
            return x + self.a(y * table), y + self.b(x + condition)

    def __init__(self, depth: int = 3, dim: int = 8, own_inputs: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(dim) for _ in range(depth))
        self.table = nn.Parameter(torch.randn(dim))
        self.own_inputs = own_inputs

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = x.tanh()
        parts = (condition * 2).unbind(1)
        for part, block in zip(parts, self.blocks, strict=True):
            x, y = block(x, y, part if self.own_inputs else parts[0], self.table)
        return x + y


class NestedDense(nn.Module):
    """Dense connections written as x = cat(x, layer(x)); the output of one layer may be read at the end, too."""

    def __init__(self, depth: int = 3, width: int = 4, rate: int = 4, kept: int | None = None) -> None:
        super().__init__()
        self.kept = kept
        self.layers = nn.ModuleList(nn.Conv2d(width + i * rate, rate, 3, padding=1) for i in range(depth))
        self.head = nn.Conv2d(width + depth * rate, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, parts = x.relu(), []
        for layer in self.layers:
            parts.append(layer(x))
            x = torch.cat([x, parts[-1]], 1)
        return self.head(x) if self.kept is None else self.head(x) * parts[self.kept].mean()


class Recurrent(nn.Module):
    """The same blocks, called twice."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.blocks, *self.blocks]:
            x = block(x)
        return x
