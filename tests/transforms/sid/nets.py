"""Networks that are conditioned in ways that sites have to be found for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adaptive(nn.Module):
    """Adaptive norms in every block from one sum of a time and a label embedding; label 5 stands for none."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, width), nn.Linear(width, 6)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(6, width)
        self.blocks = nn.ModuleList(AdaptiveBlock(width) for _ in range(depth))

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        condition = self.time(time.to(x.dtype).unsqueeze(-1)) + self.label(label)
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x)


class AdaptiveBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.width = width

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(F.silu(condition)).unsqueeze(1).chunk(3, -1)
        y = F.layer_norm(x, (self.width,)) * (1 + scale) + shift
        return x + gate * self.down(F.gelu(self.up(y)))


class PreNorm(nn.Module):
    """Blocks behind LayerNorm on a stream of tokens."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, width), nn.Linear(width, 3)
        self.blocks = nn.Sequential(*(PreNormBlock(width) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.blocks(self.enter(x)))


class PreNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Gated(nn.Module):
    """Squeeze and excite: a vector per sample that is no conditioning, since it is made of the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.head(torch.relu(x).mean((2, 3)))


class Crossed(nn.Module):
    """Tokens that attend to a projected context."""

    def __init__(self, project: bool = True) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 6)
        self.project = nn.Linear(5, 8) if project else nn.Identity()
        inner = 8 if project else 5
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(inner, 8, bias=False), nn.Linear(inner, 8, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = torch.relu(self.enter(x)), self.project(context)
        return self.leave(x + F.scaled_dot_product_attention(self.q(x), self.k(context), self.v(context)))


class TimeFirst(nn.Module):
    """Values `[tokens, batch, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.enter(x.transpose(0, 1))).mean(0))


class Shared(nn.Module):
    """A layer that is used twice: its bias cannot take what only one of its results gets."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.leave = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.enter(x)))))))


class Dropped(nn.Module):
    """Dropout behind the position table: in training a constant does not pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.positions, self.leave = nn.Linear(6, 8), nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.enter(x) + self.positions, 0.5, self.training)
        return self.leave(torch.tanh(x))


class Viewed(nn.Module):
    """The stem's result is read through a view that is written to: what is added to one is missing in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        view = x.view(-1, 2, 4)
        view.mul_(2.0)
        return self.head(torch.tanh(x))


class Staged(nn.Module):
    """Has an input and a module of the names that a stage identifier would take."""

    def __init__(self) -> None:
        super().__init__()
        self.stage_embedding, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, stage: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stage_embedding(x))) * stage
