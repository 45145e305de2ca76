"""Pieces on images `[batch, width, 4, 4]`."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.properties.pieces import SIDE, activation, divisor, image_norm, piece, table


class Standardised(nn.Conv2d):
    """Convolution whose weight is normalised in forward: by hand or by batch_norm over the weight."""

    def __init__(self, into: int, out: int, rng: random.Random) -> None:
        super().__init__(into, out, 3, padding=1)
        self.gain, self.kind = (
            nn.Parameter(torch.ones(out, 1, 1, 1)),
            rng.choice(["mean", "var_mean", "batch_norm", "std"]),
        )

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.kind == "batch_norm":
            w = F.batch_norm(
                w.reshape(1, self.out_channels, -1),
                None,
                None,
                weight=(self.gain * 0.5).view(-1),
                training=True,
                eps=1e-6,
            ).reshape_as(w)
        elif self.kind == "mean":
            w = w - w.mean((1, 2, 3), keepdim=True)
            w = w / (w.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt() * self.gain
        elif self.kind == "std":
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        else:
            var, mean = torch.var_mean(w, (1, 2, 3), keepdim=True, unbiased=False)
            w = (w - mean) * torch.rsqrt(var * 9 + 1e-4) * self.gain
        return F.conv2d(x, w, self.bias, padding=1)


def some_conv(into: int, out: int, rng: random.Random) -> nn.Module:
    """A convolution that keeps the image's size."""
    groups = [n for n in (2, 4) if into % n == 0 and out % n == 0]
    choices = [
        lambda: nn.Conv2d(into, out, 1),
        lambda: nn.Conv2d(into, out, 3, padding=1, bias=False),
        lambda: nn.Conv2d(into, out, 3, padding=2, dilation=2),
        lambda: nn.ConvTranspose2d(into, out, 3, padding=1),
        lambda: Standardised(into, out, rng),
        lambda: parametrizations.weight_norm(nn.Conv2d(into, out, 3, padding=1)),
    ]
    if groups:
        choices += [
            lambda: nn.Conv2d(into, out, 3, padding=1, groups=rng.choice(groups)),
            lambda: nn.ConvTranspose2d(into, out, 3, padding=1, groups=rng.choice(groups)),
        ]
    if out % into == 0:
        choices += [
            lambda: nn.Conv2d(into, out, 3, padding=1, groups=into),
            lambda: nn.ConvTranspose2d(into, out, 3, padding=1, groups=into),
        ]
    return rng.choice(choices)()


@piece("images")
class ConvNorm(nn.Module):
    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.conv, self.norm, self.act = some_conv(width, width, rng), image_norm(width, rng), activation(width, rng, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


@piece("images")
class Bottleneck(nn.Module):
    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        inner = rng.choice([4, 6, 8])
        self.a, self.b, self.c = (some_conv(*io, rng) for io in ((width, inner), (inner, inner), (inner, width)))
        self.norm_a, self.norm_b = image_norm(inner, rng), image_norm(inner, rng)
        self.norm_c, self.act = image_norm(width, rng), activation(inner, rng, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_c(self.c(self.act(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))))


@piece("images")
class Squeeze(nn.Module):
    """Squeeze and excite with convolutions or linear layers, ECA, and a plain channel gate."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.kind = rng.choice(["conv", "linear", "eca", "gate", "spatial"])
        self.down, self.up = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)
        self.into, self.out = nn.Linear(width, 3), nn.Linear(3, width)
        self.eca, self.body, self.spatial = (
            nn.Conv1d(1, 1, 3, padding=1),
            some_conv(width, width, rng),
            nn.Conv2d(2, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.kind == "conv":
            return x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        if self.kind == "linear":
            gate = self.out(F.silu(self.into(x.mean((2, 3))))).sigmoid()
            return x * gate.view(gate.shape[0], -1, 1, 1)
        if self.kind == "eca":
            y = self.eca(x.mean((2, 3)).unsqueeze(1))
            return x * y.sigmoid().view(x.shape[0], -1, 1, 1)
        if self.kind == "gate":
            return x * torch.sigmoid(self.up(F.hardswish(self.down(x))))
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.spatial(both).sigmoid()


@piece("images")
class Shuffled(nn.Module):
    """Channel shuffle by views or by the fused op, behind a grouped convolution."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.groups, self.fused = divisor(rng, width, 2, 4), rng.random() < 0.4
        self.a, self.b = nn.Conv2d(width, width, 1, groups=self.groups), nn.Conv2d(width, width, 1, groups=self.groups)
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), image_norm(width, rng)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.fused:
            y = F.channel_shuffle(y, self.groups)
        else:
            batch, width, h, w = y.shape
            y = y.view(batch, self.groups, width // self.groups, h, w).transpose(1, 2).reshape(batch, width, h, w)
        return self.b(self.norm(self.depthwise(y)))


@piece("images")
class HalfAndHalf(nn.Module):
    """One half goes through a branch, the other stays; the halves are joined again and shuffled."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.half, self.kind = width // 2, rng.choice(["chunk", "slice", "split"])
        self.branch, self.norm = some_conv(self.half, self.half, rng), image_norm(self.half, rng)
        self.mix, self.after = rng.random() < 0.5, image_norm(2 * self.half, rng)
        self.out = nn.Conv2d(2 * self.half, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "slice":
            a, b = x[:, : self.half], x[:, self.half : 2 * self.half]
        else:
            a, b = x.chunk(2, 1) if self.kind == "chunk" else x.split(self.half, 1)
        y = torch.cat([a, self.norm(self.branch(b))], 1)
        if self.mix:
            y = y.unflatten(1, (2, self.half)).transpose(1, 2).flatten(1, 2)
        return self.out(self.after(y))


@piece("images")
class Dense(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        step = rng.choice([2, 3, 4])
        self.norms = nn.ModuleList(image_norm(width + i * step, rng) for i in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width + i * step, step, 3, padding=1) for i in range(2))
        self.out = some_conv(width + 2 * step, width, rng)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.out(x)


@piece("images")
class Rearranged(nn.Module):
    """Pixel shuffle and unshuffle, space to depth, patch merging, strided and transposed convolutions, pools."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.kind = rng.choice(["pixel", "unpixel", "space", "merge", "stride", "pool", "resize", "grouped up"])
        self.wide, self.norm = nn.Conv2d(width, 4 * width, 1), nn.LayerNorm(4 * width)
        self.narrow, self.reduce = nn.Conv2d(4 * width, width, 1), nn.Linear(4 * width, width, bias=False)
        self.down = nn.Conv2d(width, 6, 2, stride=2)
        groups = divisor(rng, width, 1, 2) if width % 2 == 0 else 1
        self.up = nn.ConvTranspose2d(6, width, 2, stride=2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pixel":
            return F.max_pool2d(F.pixel_shuffle(self.wide(x), 2), 2)
        if self.kind == "unpixel":
            return F.interpolate(self.narrow(F.pixel_unshuffle(x, 2)), scale_factor=2.0)
        if self.kind == "space":
            b, c, h, w = x.shape
            y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
            return F.interpolate(self.narrow(y), scale_factor=2.0, mode="bilinear")
        if self.kind == "merge":
            y = x.permute(0, 2, 3, 1)
            y = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
            return F.interpolate(self.reduce(self.norm(y)).permute(0, 3, 1, 2), scale_factor=2.0)
        if self.kind in ("stride", "grouped up"):
            return self.up(F.gelu(self.down(x)))
        if self.kind == "pool":
            return x - F.avg_pool2d(x, 3, 1, 1)
        return F.interpolate(F.adaptive_avg_pool2d(x, 2), size=(SIDE, SIDE), mode="nearest")


@piece("images")
class Flattened(nn.Module):
    """The image as one vector, or as tokens."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.kind, self.slim = rng.choice(["vector", "tokens", "gain", "global"]), nn.Conv2d(width, 2, 1)
        self.linear, self.back, self.gamma = nn.Linear(2 * SIDE * SIDE, 3), nn.Linear(3, width), table(width, 1, 1)
        self.mlp, self.beta = nn.Linear(width, width), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "vector":
            y = self.back(F.relu(self.linear(self.slim(x).flatten(1))))
            return x * y.view(x.shape[0], -1, 1, 1)
        if self.kind == "tokens":
            b, c, h, w = x.shape
            return self.mlp(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w)
        if self.kind == "gain":
            return x * self.gamma + self.beta
        spread = x.pow(2).sum((2, 3), keepdim=True).sqrt()  # global response norm
        return x + self.gamma * x * (spread / (spread.mean(1, keepdim=True) + 1e-6)) + self.beta
