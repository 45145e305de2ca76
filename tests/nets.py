"""Networks written for the tests; none uses a class of timm, torchvision, diffusers or transformers."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HandRMSNorm(nn.Module):
    """RMS normalisation spelled out: gain * x / sqrt(mean(x^2) + eps) over the last dim."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class EinsumAttention(nn.Module):
    """Attention by einsum; qkv packed as (heads, 3, head_dim) x width, the scale a literal of the head dim."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Parameter(torch.randn(heads * 3 * self.head_dim, dim) * dim**-0.5)
        self.out = nn.Parameter(torch.randn(heads, self.head_dim, dim) * dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        packed = torch.einsum("btc,oc->bto", x, self.qkv).view(batch, tokens, self.heads, 3, self.head_dim)
        q, k, v = packed.unbind(3)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.head_dim**-0.5
        return torch.einsum("bhqk,bkhd,hdc->bqc", scores.softmax(-1), v, self.out)


class EinsumBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = HandRMSNorm(dim), HandRMSNorm(dim)
        self.attention = EinsumAttention(dim, heads)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        gate, value = self.up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value)


class EinsumTransformer(nn.Module):
    """Pre-norm transformer over continuous tokens: f32[batch, tokens, features] to f32[batch, classes]."""

    def __init__(
        self, dim: int = 24, heads: int = 3, hidden: int = 40, depth: int = 3, features: int = 10, tokens: int = 6
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.positions = nn.Parameter(torch.randn(tokens, dim) * 0.1)
        self.layers = nn.ModuleList(EinsumBlock(dim, heads, hidden) for _ in range(depth))
        self.final = HandRMSNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final(x).mean(1))


class FlatMixer(nn.Module):
    """One flat forward: four residual blocks whose parameters are attributes `w1_0, b1_0, ... w2_3, b2_3`."""

    def __init__(self, channels: int = 12, hidden: int = 20, depth: int = 4) -> None:
        super().__init__()
        self.channels, self.depth = channels, depth
        self.stem_w = nn.Parameter(torch.randn(channels, 3, 4, 4) * 0.1)
        self.stem_b = nn.Parameter(torch.zeros(channels))
        for i in range(depth):
            self.register_parameter(f"g_{i}", nn.Parameter(torch.ones(channels)))
            self.register_parameter(f"s_{i}", nn.Parameter(torch.zeros(channels)))
            self.register_parameter(f"k_{i}", nn.Parameter(torch.randn(channels, 1, 3, 3) * 0.3))
            self.register_parameter(f"w1_{i}", nn.Parameter(torch.randn(hidden, channels) * channels**-0.5))
            self.register_parameter(f"b1_{i}", nn.Parameter(torch.zeros(hidden)))
            self.register_parameter(f"w2_{i}", nn.Parameter(torch.randn(channels, hidden) * hidden**-0.5))
            self.register_parameter(f"b2_{i}", nn.Parameter(torch.zeros(channels)))
        self.head_w = nn.Parameter(torch.randn(7, channels) * channels**-0.5)
        self.head_b = nn.Parameter(torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.stem_w, self.stem_b, stride=4)
        for i in range(self.depth):
            own = {kind: getattr(self, f"{kind}_{i}") for kind in ("g", "s", "k", "w1", "b1", "w2", "b2")}
            y = F.conv2d(x, own["k"], padding=1, groups=self.channels).permute(0, 2, 3, 1)
            y = F.layer_norm(y, (self.channels,), own["g"], own["s"])
            y = F.linear(F.gelu(F.linear(y, own["w1"], own["b1"])), own["w2"], own["b2"])
            x = x + y.permute(0, 3, 1, 2)
        return F.linear(x.mean((2, 3)), self.head_w, self.head_b)


class ImageBlock(nn.Module):
    """Pre-norm attention and MLP; with a condition, its scale, shift and gate (as in diffusion transformers)."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 3 * width) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y, gate = self.norm1(x), 1.0
        if self.modulation is not None:
            scale, shift, gate = self.modulation(F.silu(condition))[:, None].chunk(3, dim=-1)
            y = y * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + gate * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ImageTransformer(nn.Module):
    """Image classifier with a class token and learned positions: f32[batch, 3, 32, 32] to f32[batch, 7].

    With a condition a second input f32[batch, condition] modulates every block.
    """

    def __init__(self, width: int = 16, heads: int = 2, depth: int = 4, condition: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.condition = nn.Linear(condition, width) if condition else None
        self.blocks = nn.ModuleList(ImageBlock(width, heads, condition) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        if self.condition is not None:
            condition = self.condition(condition)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(self.norm(x)[:, 0])


class ConditionalTransformer(ImageTransformer):
    """The same under a condition: f32[batch, 3, 32, 32] and f32[batch, 5] to f32[batch, 7]."""

    def __init__(self) -> None:
        super().__init__(condition=5)


class ConvNet(nn.Module):
    """BatchNorm CNN with a dense, a grouped and a depthwise convolution."""

    def __init__(self, channels: int = 8, groups: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.grouped = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, groups=groups)
        self.grouped_norm = nn.BatchNorm2d(2 * channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.point = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.head = nn.Linear(2 * channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        x = F.hardswish(self.grouped_norm(self.grouped(x)))
        x = x + self.point(F.relu(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


class TiedWeights(nn.Module):
    """Token model whose output head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids))))


@dataclasses.dataclass
class Prediction:
    logits: Tensor
    hidden: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Prediction:
        hidden = torch.relu(self.body(x))
        return Prediction(self.head(hidden), None, (hidden, hidden * 2))


class StructuredOutput(nn.Module):
    """Returns a dict with a tuple and a None inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor] | None]:
        hidden = torch.relu(self.body(x))
        return {"logits": self.head(hidden), "pair": (hidden, hidden.sum(-1)), "nothing": None}


class KeywordInputs(nn.Module):
    """Keyword-only inputs: tensors in a nested dict, integer tensor, optional tensor, number and flag."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(
        self,
        *,
        batch: dict[str, dict[str, Tensor]],
        mask: Tensor | None = None,
        scale: float = 1.0,
        double: bool = False,
    ) -> Tensor:
        x = self.embed(batch["tokens"]["ids"]) + batch["tokens"]["extra"]
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return self.body(x * scale) * (2 if double else 1)


class DroppingNet(nn.Module):
    """Residual blocks over continuous tokens with drop-path, rising from 0, and dropout: f32[batch, tokens, 6]."""

    def __init__(
        self, width: int = 8, hidden: int = 12, depth: int = 3, path: float = 0.2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 4)
        rates = [path * k / max(depth - 1, 1) for k in range(depth)]
        self.blocks = nn.ModuleList(DroppingBlock(width, hidden, rate, dropout) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class DroppingBlock(nn.Module):
    def __init__(self, width: int, hidden: int, path: float, dropout: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.path, self.drop = path, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.drop(F.gelu(self.up(self.norm(x)))))
        if self.training and self.path:
            keep = 1 - self.path
            y = y * y.new_empty(y.shape[0], 1, 1).bernoulli_(keep).div_(keep)
        return x + y
