"""The registry of pieces that networks are drawn from, and the norms and activations that all pieces draw."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 5
"""Tokens of every token network."""

SIDE = 4
"""Height and width of the images that image pieces see."""

PIECES: dict[str, dict[str, type[nn.Module]]] = {"tokens": {}, "images": {}, "vectors": {}}
"""Family to piece name to class. A class is built with `(width, rng)` and keeps the shape of its input."""


def piece(*families: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Registers a class under its own name."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        for family in families:
            PIECES[family][cls.__name__] = cls
        return cls

    return register


def divisor(rng: random.Random, width: int, *wanted: int) -> int:
    """One of the wanted numbers that divides the width."""
    return rng.choice([n for n in wanted if width % n == 0] or [1])


class HandRMS(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gain


class HandLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) * self.gain + self.shift


class VarLayer(nn.Module):
    """By `var`, biased or not: the unbiased one has to be refused."""

    def __init__(self, width: int, unbiased: bool) -> None:
        super().__init__()
        self.gain, self.unbiased = nn.Parameter(torch.ones(width)), unbiased

    def forward(self, x: Tensor) -> Tensor:
        return (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=self.unbiased) + 1e-5).sqrt() * self.gain
        )


class L2(nn.Module):
    """Features of length one, times a gain."""

    def __init__(self, width: int, gain: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return x if self.gain is None else x * self.gain


class ChannelsFirst(nn.Module):
    """A token norm for images."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokensFirst(nn.Module):
    """A norm of `[batch, channels, ...]` for tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def token_norm(width: int, rng: random.Random) -> nn.Module:
    """A norm over the last dim."""
    return rng.choice(
        [
            lambda: nn.LayerNorm(width),
            lambda: nn.LayerNorm(width, elementwise_affine=False),
            lambda: nn.RMSNorm(width, eps=1e-6),
            lambda: HandRMS(width),
            lambda: HandLayer(width),
            lambda: VarLayer(width, unbiased=rng.random() < 0.5),
            lambda: L2(width),
            lambda: nn.Identity(),
        ]
    )()


def image_norm(width: int, rng: random.Random) -> nn.Module:
    """A norm of `[batch, channels, height, width]`."""
    return rng.choice(
        [
            lambda: nn.BatchNorm2d(width),
            lambda: nn.BatchNorm2d(width),
            lambda: nn.BatchNorm2d(width, affine=False),
            lambda: nn.GroupNorm(divisor(rng, width, 2, 4), width),
            lambda: nn.GroupNorm(1, width),
            lambda: nn.GroupNorm(width, width),
            lambda: nn.InstanceNorm2d(width, affine=rng.random() < 0.5, track_running_stats=rng.random() < 0.3),
            lambda: ChannelsFirst(token_norm(width, rng)),
            lambda: nn.Identity(),
        ]
    )()


def activation(width: int, rng: random.Random, dim: int = -1, in_place: bool = True) -> nn.Module:
    """Any elementwise function; PReLU has a slope per channel of dim 1. Some write to their input if they may."""
    choices: list[Callable[[], nn.Module]] = [
        nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Hardswish, nn.Softplus, nn.LeakyReLU, nn.PReLU,
        lambda: nn.ReLU(inplace=in_place), lambda: nn.SiLU(inplace=in_place), lambda: nn.GELU("tanh"), nn.Identity,
    ]  # fmt: skip
    if dim == 1:
        choices.append(lambda: nn.PReLU(width))
    return rng.choice(choices)()


def table(*shape: int, scale: float = 0.3) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * scale)
