"""Attention in its spellings, on tokens."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.properties.pieces import TOKENS, HandRMS, divisor, piece, table


def rotated(x: Tensor, cos: Tensor, sin: Tensor, halves: bool) -> Tensor:
    """Rotary positions: pairs are two halves, or neighbours."""
    if halves:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


@piece("tokens")
class Attention(nn.Module):
    """Self-attention; what it is made of is drawn."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.heads = divisor(rng, width, 1, 2, 2, 4)
        self.dim = rng.choice([2, 4])
        self.layout = rng.choice(["3hd", "h3d", "hd3", "separate", "grouped", "split"])
        self.fused = rng.random() < 0.5
        self.shared = divisor(rng, self.heads, 1, 2) if self.layout == "grouped" else self.heads
        inner = self.heads * self.dim
        if self.layout in ("separate", "grouped"):
            self.q = nn.Linear(width, inner)
            self.k, self.v = nn.Linear(width, self.shared * self.dim), nn.Linear(width, self.shared * self.dim)
        else:
            self.qkv = nn.Linear(width, 3 * inner, bias=rng.random() < 0.5)
        self.out = nn.Linear(inner, width)
        self.repeats = rng.choice(["interleave", "expand", "gqa"])
        norm = rng.choice(["", "", "", "rms", "hand", "layer", "cosine"])
        make = {
            "rms": lambda: nn.RMSNorm(self.dim),
            "hand": lambda: HandRMS(self.dim),
            "layer": lambda: nn.LayerNorm(self.dim),
        }
        self.q_norm, self.k_norm = (make[norm]() if norm in make else nn.Identity() for _ in range(2))
        self.cosine = norm == "cosine"
        self.logit = nn.Parameter(torch.full((self.heads, 1, 1), 1.0))
        self.scale = rng.choice(["default", "literal", "q", "learned"])
        self.learned = nn.Parameter(torch.tensor(0.7))
        self.rotary = rng.choice(["", "", "halves", "pairs"])
        angles = torch.outer(torch.arange(TOKENS).float(), torch.tensor([1.0, 0.1])[: self.dim // 2])
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.bias = rng.choice(["", "", "dense", "table", "causal"])
        self.table = table(self.heads, TOKENS, TOKENS) if self.bias == "dense" else table(9, self.heads)
        self.register_buffer("index", (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None, :]) + TOKENS - 1)
        self.talking = rng.choice(["", "", "", "before", "after"])
        self.mix = nn.Linear(self.heads, self.heads)
        self.gate = nn.Linear(width, inner) if rng.random() < 0.2 else None

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        if self.layout in ("separate", "grouped"):
            q = self.q(x).view(batch, tokens, self.heads, self.dim).transpose(1, 2)
            k, v = (m(x).view(batch, tokens, self.shared, self.dim).transpose(1, 2) for m in (self.k, self.v))
            return q, k, v
        y = self.qkv(x)
        if self.layout == "3hd":
            q, k, v = y.view(batch, tokens, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        elif self.layout == "h3d":
            q, k, v = y.view(batch, tokens, self.heads, 3, self.dim).permute(3, 0, 2, 1, 4).unbind(0)
        elif self.layout == "hd3":
            q, k, v = y.view(batch, tokens, self.heads, self.dim, 3).permute(4, 0, 2, 1, 3).unbind(0)
        else:
            q, k, v = (p.view(batch, tokens, self.heads, self.dim).transpose(1, 2) for p in y.chunk(3, -1))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary and self.dim >= 2:
            q, k = (rotated(t, self.cos, self.sin, self.rotary == "halves") for t in (q, k))
        if self.cosine:
            q, k = F.normalize(q, dim=-1) * self.logit.clamp(max=4.0).exp(), F.normalize(k, dim=-1)
        groups, gqa = self.heads // self.shared, False
        if groups > 1 and self.fused and self.repeats == "gqa":
            gqa = True
        elif groups > 1 and self.repeats == "expand":
            k, v = (t[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for t in (k, v))
        elif groups > 1:
            k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
        bias = None
        if self.bias == "dense":
            bias = self.table
        elif self.bias == "table":
            bias = self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        elif self.bias == "causal":
            bias = torch.full((TOKENS, TOKENS), float("-inf")).triu(1).to(x.dtype)
        y = (
            self.fused_scores(q, k, v, bias, gqa)
            if self.fused and not self.talking
            else self.by_hand(q, k, v, bias, gqa)
        )
        y = y.transpose(1, 2).flatten(2)
        return self.out(y if self.gate is None else y * torch.sigmoid(self.gate(x)))

    def fused_scores(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, gqa: bool) -> Tensor:
        if self.scale == "learned":
            q = q * self.learned
        scale = 0.6 if self.scale == "literal" else 1.0 if self.cosine else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=gqa)

    def by_hand(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, gqa: bool) -> Tensor:
        if gqa:
            k, v = (t.repeat_interleave(self.heads // self.shared, 1) for t in (k, v))
        if self.scale == "q":
            scores = (q * self.dim**-0.5) @ k.transpose(-2, -1)
        elif self.scale == "learned":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.learned
        else:
            scores = q @ k.transpose(-2, -1) / self.dim**0.5
        if bias is not None:
            scores = scores + bias
        if self.talking == "before":
            scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weight = scores.softmax(-1)
        if self.talking == "after":
            weight = self.mix(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return weight @ v


@piece("tokens")
class Library(nn.Module):
    """torch's own multi-head attention and encoder layer."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        heads = divisor(rng, width, 1, 2, 4)
        self.whole = rng.random() < 0.3
        if self.whole:
            self.layer = nn.TransformerEncoderLayer(
                width, heads, 6, dropout=rng.choice([0.0, 0.1]), batch_first=True, norm_first=rng.random() < 0.5
            )
        else:
            self.attention = nn.MultiheadAttention(width, heads, bias=rng.random() < 0.7, batch_first=True)
            self.weights = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            return self.layer(x)
        return self.attention(x, x, x, need_weights=self.weights)[0]


@piece("tokens")
class CrossLatents(nn.Module):
    """Learned queries read the tokens; their answer is spread over the tokens again."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.latents, self.inner = table(3, width), rng.choice([3, 4])
        self.k, self.v, self.q = nn.Linear(width, self.inner), nn.Linear(width, width), nn.Linear(width, self.inner)
        self.projected, self.linear = rng.random() < 0.5, rng.random() < 0.4

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:  # linear attention: keys and values meet first
            q, k = self.q(x).softmax(-1), self.k(x).softmax(1)
            return q @ (k.transpose(1, 2) @ self.v(x))
        latents = self.latents.expand(x.shape[0], -1, -1)
        q = self.q(latents) if self.projected else self.k(latents)
        weight = (q @ self.k(x).transpose(1, 2) * 0.5).softmax(-1)
        return x + (weight @ self.v(x)).mean(1, keepdim=True)
