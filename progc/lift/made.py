"""Tensors that a growth makes out of nothing: a stage embedding has no predecessor to be lifted from."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Made:
    """A parameter that was not there before.

    Attributes:
        name: its name after growth.
        shape: its shape.
        std: standard deviation of normal draws; 0 for zeros.
        dtype: of torch, without the prefix: `float32`.
    """

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    dtype: str = "float32"

    def draw(self, seed: int, device: torch.device | str = "cpu") -> nn.Parameter:
        """The parameter; every name has a random stream of its own, the same on every device."""
        generator = torch.Generator().manual_seed(stream(seed, self.name))
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.std
        return nn.Parameter(values.to(device, getattr(torch, self.dtype)))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return {"name": self.name, "shape": list(self.shape), "std": self.std, "dtype": self.dtype}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Made:
        """Reads what `to_json` wrote."""
        return Made(data["name"], tuple(data["shape"]), data["std"], data["dtype"])


def stream(seed: int, name: str) -> int:
    """Seed of the random stream of one tensor."""
    return seed * 0x9E3779B1 + zlib.crc32(name.encode()) & 0x7FFFFFFFFFFFFFFF
