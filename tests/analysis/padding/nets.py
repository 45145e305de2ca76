"""Networks whose residual width is normalised in every way that can be padded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    """Pre-norm transformer: patches by convolution, class token, learned positions, layer scale."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Block(nn.Module):
    """Attention and MLP, both behind a gain per channel."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gain1, self.gain2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.gain1 * self.proj(y)
        return x + self.gain2 * self.down(F.gelu(self.up(self.norm2(x))))


class Norm(nn.Module):
    """RMSNorm: the fused operation, or written out."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.weight, self.fused = nn.Parameter(torch.ones(width)), fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Centred(nn.Module):
    """LayerNorm written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class Decoder(nn.Module):
    """RMSNorm, rotary positions, gated MLP, a head tied to the table."""

    def __init__(
        self, width: int = 12, heads: int = 3, fused: bool = True, tied: bool = True, qk: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.size = heads, 4
        self.embed = nn.Embedding(11, width)
        self.norm1, self.norm2, self.final = (Norm(width, fused) for _ in range(3))
        self.qn, self.kn = (Norm(self.size, fused) if qk else nn.Identity() for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(width, 4 * heads, bias=False) for _ in range(3))
        self.o = nn.Linear(4 * heads, width, bias=False)
        self.gate, self.up = nn.Linear(width, 18, bias=False), nn.Linear(width, 18, bias=False)
        self.down, self.head = nn.Linear(18, width, bias=False), nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), self.frequencies)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turn(self.qn(q)), self.turn(self.kn(k))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return self.head(self.final(x + self.down(F.silu(self.gate(y)) * self.up(y))))


class Downsampling(nn.Module):
    """Two stages; the convolution between them reads the raw stream of the first."""

    def __init__(self, width: int = 6, second: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, stride=2)
        self.norm1, self.mlp1 = nn.LayerNorm(width), nn.Linear(width, width)
        self.between = nn.Conv2d(width, second, 2, stride=2)
        self.norm2, self.mlp2 = nn.LayerNorm(second), nn.Linear(second, second)
        self.last, self.head = nn.LayerNorm(second), nn.Linear(second, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = x + self.mlp1(self.norm1(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = self.between(x)
        x = x + self.mlp2(self.norm2(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.head(self.last(F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)).mean(1))


class Stream(nn.Module):
    """A stream of `width` that `write` adds to and `norm` reads; parts come by keyword."""

    def __init__(self, write, width: int = 8, norm: nn.Module | None = None, **parts: nn.Module) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.write = write
        self.into, self.norm, self.out = nn.Linear(6, width), norm or nn.LayerNorm(width), nn.Linear(width, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(self.norm(x + self.write(self, x)))
