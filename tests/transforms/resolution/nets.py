"""Small networks whose position tables are read in ways of their own."""

from __future__ import annotations

import torch
from torch import nn


class Axial(nn.Module):
    """Decomposed relative tables: one per direction, differences looked up by an index, added to the scores."""

    def __init__(self, side: tuple[int, int] = (4, 4), width: int = 8) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.row_table = nn.Parameter(torch.randn(2 * side[0] - 1, width))
        self.column_table = nn.Parameter(torch.randn(2 * side[1] - 1, width))
        for name, size in zip(("rows", "columns"), side, strict=True):
            gap = torch.arange(size)[:, None] - torch.arange(size)[None, :]
            self.register_buffer(name, gap + size - 1)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = self.side
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        query, key = self.query(tokens), self.key(tokens)
        scores = query @ key.transpose(1, 2)
        grid = query.reshape(-1, height, width, query.shape[-1])
        across = torch.einsum("bhwc,hkc->bhwk", grid, self.row_table[self.rows])
        along = torch.einsum("bhwc,wkc->bhwk", grid, self.column_table[self.columns])
        scores = scores.view(-1, height, width, height, width)
        scores = scores + across[:, :, :, :, None] + along[:, :, :, None, :]
        scores = scores.view(-1, height * width, height * width)
        return self.head((scores.softmax(-1) @ tokens).mean(1))


class Sums(nn.Module):
    """A table for rows and one for columns, added together; learned, and looked up by a count."""

    def __init__(self, side: tuple[int, int] = (4, 4), width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.rows = nn.Parameter(torch.randn(1, width, side[0], 1))
        self.columns = nn.Parameter(torch.randn(1, width, 1, side[1]))
        self.register_buffer("places", torch.arange(side[0] * side[1])[None])
        self.table = nn.Embedding(side[0] * side[1], width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.rows + self.columns
        return self.head((x.flatten(2).transpose(1, 2) + self.table(self.places)).tanh().mean(1))


class Windows(nn.Module):
    """Attention in windows without any table: nothing says whether windows stay."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, width, 2, 2), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        batch, height, width, units = x.shape
        parts = x.view(batch, height // 4, 4, width // 4, 4, units).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, units)
        parts = (parts @ parts.transpose(1, 2)).softmax(-1) @ self.mix(parts)
        return self.head(parts.reshape(batch, -1, units).mean(1))


class Flattened(nn.Module):
    """A linear layer over all positions: made for one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x).flatten(1))


class Pyramid(nn.Module):
    """Nothing but convolutions and pooling, and a skip at twice the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x).relu()
        y = nn.functional.interpolate(nn.functional.max_pool2d(x, 2), size=x.shape[-2:], mode="nearest")
        return self.head((self.up(y) + x).mean((2, 3)))


class Sum(nn.Module):
    """A mean over positions, written as a sum over their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


class Counted(nn.Module):
    """Coordinates between 0 and 1: rows counted, over their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        rows = torch.arange(x.shape[2], dtype=x.dtype) / x.shape[2]
        return self.head((x + rows[:, None]).relu().mean((2, 3)))
