"""Ops on images: f64[2, 8, 6, 6] between two convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.analysis.axes.between import Case, add, table
from tests.analysis.axes.pointwise_cases import positive

A = torch.ops.aten


def convolution(*args: Any, **kwargs: Any) -> Callable[[nn.Module], None]:
    return add("conv", nn.Conv2d(*args, **kwargs))


IMAGES = [
    Case("convolution", lambda m, x: m.conv(x).tanh(), 6, grows=True, setup=convolution(8, 6, 3, padding=1)),
    Case(
        "padded with mirrors",
        lambda m, x: m.conv(x),
        6,
        grows=True,
        setup=convolution(8, 6, 3, padding=1, padding_mode="reflect"),
    ),
    Case(
        "windows apart and together",
        lambda m, x: F.fold(F.unfold(x, 3, padding=1, stride=2).tanh(), (6, 6), 3, padding=1, stride=2),
        8,
        grows=True,
    ),
    Case("grouped convolution", lambda m, x: m.conv(x).tanh(), 12, grows=True, setup=convolution(8, 12, 3, groups=4)),
    Case("depthwise", lambda m, x: m.conv(x).tanh(), 16, grows=True, setup=convolution(8, 16, 3, groups=8)),
    Case(
        "general form",
        lambda m, x: A.convolution(x, m.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2),
        4,
        grows=True,
        setup=table((4, 4, 1, 1)),
    ),
    Case("transposed", lambda m, x: m.up(x), 4, grows=True, setup=add("up", nn.ConvTranspose2d(8, 4, 2, 2))),
    Case(
        "transposed, depthwise",
        lambda m, x: m.up(x),
        16,
        grows=True,
        setup=add("up", nn.ConvTranspose2d(8, 16, 2, 2, groups=8)),
    ),
    Case(
        "transposed, grouped",
        lambda m, x: m.up(x),
        4,
        grows=True,
        setup=add("up", nn.ConvTranspose2d(8, 4, 2, 2, groups=2)),
    ),
    Case(
        "three dims",
        lambda m, x: m.deep(x.unsqueeze(2)).squeeze(2),
        4,
        grows=True,
        setup=add("deep", nn.Conv3d(8, 4, 1)),
    ),
    Case(
        "three dims, transposed",
        lambda m, x: m.deep(x.unsqueeze(2)).squeeze(2),
        4,
        grows=True,
        setup=add("deep", nn.ConvTranspose3d(8, 4, 1)),
    ),
    Case(
        "across channels",
        lambda m, x: x * m.line(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None].sigmoid(),
        grows=False,
        setup=add("line", nn.Conv1d(1, 1, 3, padding=1)),
    ),
    Case(
        "across channels, pooled",
        lambda m, x: m.line(x.mean((2, 3)).unsqueeze(1)).mean(-1),
        0,
        grows=False,
        setup=add("line", nn.Conv1d(1, 3, 3)),
    ),
    Case(
        "across channels, one point",
        lambda m, x: x * m.line(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None],
        grows=True,
        setup=add("line", nn.Conv1d(1, 1, 1)),
    ),
    Case(
        "one dim, transposed",
        lambda m, x: m.line(x.flatten(2)).unflatten(-1, (6, 6)),
        4,
        grows=True,
        setup=add("line", nn.ConvTranspose1d(8, 4, 1)),
    ),
    Case(
        "pools",
        lambda m, x: (
            F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, 3)
        ),
        grows=True,
    ),
    Case(
        "pools with places",
        lambda m, x: A.max_pool2d_with_indices(x, [2, 2])[0] + F.lp_pool2d(positive(x), 2, 2),
        grows=True,
    ),
    Case(
        "resized",
        lambda m, x: (
            F.interpolate(x, scale_factor=2)
            + F.interpolate(x, (12, 12), mode="bilinear")
            + F.interpolate(x, (12, 12), mode="bicubic")
            + F.interpolate(x, (12, 12), mode="nearest-exact")
            + F.interpolate(x, (12, 12), mode="bilinear", antialias=True)
            + F.interpolate(x, (12, 12), mode="bicubic", antialias=True)
        ),
        grows=True,
    ),
    Case(
        "sampled", lambda m, x: F.grid_sample(x, m.w.tanh(), align_corners=False), grows=True, setup=table((2, 4, 4, 2))
    ),
    Case(
        "pools of lines",
        lambda m, x: (
            F.avg_pool1d(x.flatten(2), 2)
            + F.max_pool1d(x.flatten(2), 2)
            + F.adaptive_avg_pool1d(x.flatten(2), 18)
            + F.adaptive_max_pool1d(x.flatten(2), 18)
            + F.interpolate(x.flatten(2), 18)
            + F.interpolate(x.flatten(2), 18, mode="linear")
            + F.lp_pool1d(positive(x).flatten(2), 2, 2)
        ).unsqueeze(-1),
        grows=True,
    ),
    Case(
        "pools of volumes",
        lambda m, x: (
            F.avg_pool3d(x[:, :, None], 1)
            + F.max_pool3d(x[:, :, None], 1)
            + F.adaptive_avg_pool3d(x[:, :, None], (1, 6, 6))
            + F.adaptive_max_pool3d(x[:, :, None], (1, 6, 6))
            + F.interpolate(x[:, :, None], (1, 6, 6))
            + F.interpolate(x[:, :, None], (1, 6, 6), mode="trilinear")
        )[:, :, 0],
        grows=True,
    ),
    Case("maximum along channels", lambda m, x: F.max_pool1d(x.flatten(2).mT, 2).mT.unsqueeze(-1), 4, grows=False),
    Case(
        "average along channels",
        lambda m, x: F.adaptive_avg_pool1d(x.flatten(2).mT, 2).mT.unsqueeze(-1),
        2,
        grows=False,
    ),
    Case(
        "mirrored borders",
        lambda m, x: A.replication_pad2d(A.reflection_pad2d(x, [1, 1, 1, 1]), [1, 1, 1, 1]),
        grows=True,
    ),
    Case("pixel shuffle", lambda m, x: F.pixel_shuffle(x, 2), 2, grows=True),
    Case("pixel unshuffle", lambda m, x: F.pixel_unshuffle(x, 2), 32, grows=True),
    Case("channel shuffle", lambda m, x: A.channel_shuffle(x, 2), grows=True),
    Case("channel shuffle by hand", lambda m, x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), grows=True),
    Case("unfold", lambda m, x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1), grows=True),
    Case(
        "squeeze and excite",
        lambda m, x: x * m.line(x.mean((2, 3), True).flatten(1)).sigmoid()[..., None, None],
        grows=True,
        setup=add("line", nn.Linear(8, 8)),
    ),
]
