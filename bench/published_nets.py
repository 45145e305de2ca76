"""Small networks for bench/published.py: the published classes in small sizes, or networks of the same form.

The image network has two kinds of blocks in a row, batch normalisation in its stem, and a table of positions; the
denoiser is conditioned on a time step and a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.published_code import Code
from bench.published_formulas import drop_rates, nested, resampled

CLASSES, WIDTH, PATCH = 7, 32, 16
"""Of the image network: one position for 16 x 16 pixels, as in VOLO."""


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Adds noise to all parameters and statistics, because zeros and ones hide differences; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for n, b in module.named_buffers() if "running" in n)):
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(0.05 * noise if isinstance(tensor, nn.Parameter) else 0.05 * noise.abs())
    return module.eval()


# -- images --------------------------------------------------------------------------------------------------------


class Kinds(nn.Module):
    """A network of the form of VOLO, `[batch, 3, side, side]` to `[batch, 7]`."""

    def __init__(self, layers: Sequence[int], side: int, rate: float = 0.0) -> None:
        from timm.layers import DropPath

        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, side // PATCH, side // PATCH, WIDTH))
        rates = drop_rates(rate, layers, (False, True))
        drops = iter([DropPath(own) if own else nn.Identity() for own in rates])
        self.network = nn.ModuleList(
            nn.ModuleList(Mixing(kind(), next(drops)) for _ in range(count))
            for kind, count in zip((_near, _alone), layers, strict=True)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, kept: Sequence[Sequence[int]] | None = None) -> Tensor:
        """`kept` are the blocks of each kind that run; None: all."""
        x = self.stem(x)
        for number, blocks in enumerate(self.network):
            if number == 1:
                x = x + (self.table(x.shape[-1]) if kept is not None else self.pos_embed).permute(0, 3, 1, 2)
            for place, block in enumerate(blocks):
                if kept is None or place in kept[number]:
                    x = block(x)
        return self.head(x.mean((2, 3)))

    def table(self, side: int) -> Tensor:
        """The table of positions at another size."""
        return resampled(self.pos_embed.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


class Mixing(nn.Module):
    """A residual block."""

    def __init__(self, inner: nn.Module, drop: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner, self.drop = nn.GroupNorm(1, WIDTH), inner, drop

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width]` to the same."""
        return x + self.drop(self.inner(self.norm(x)))


def _near() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 1))


def _alone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.GELU(), nn.Conv2d(2 * WIDTH, WIDTH, 1))


def image_network(code: Code, layers: Sequence[int], side: int = 64, rate: float = 0.0, seed: int = 0) -> Any:
    """The published VOLO with small widths, or `Kinds`; `layers` of both kinds."""
    torch.manual_seed(seed)
    if code.autoprog is None:
        return perturbed(Kinds(layers, side, rate), seed)
    volo = code.module(code.autoprog, "models.volo").VOLO
    return perturbed(
        volo(
            [*layers, 0, 0], img_size=side, patch_size=8, stem_hidden_dim=8, num_classes=CLASSES,
            embed_dims=[WIDTH // 2, WIDTH, WIDTH, WIDTH], num_heads=[2, 4, 4, 4], mlp_ratios=[3, 3, 3, 3],
            downsamples=[True, False, False, False], outlook_attention=[True, False, False, False],
            post_layers=["ca", "ca"], drop_path_rate=rate, return_dense=False, mix_token=False,
        ),
        seed,
    )  # fmt: skip


def chains(code: Code) -> tuple[str, str]:
    """Names of both rows of blocks."""
    return ("network.0", "network.1") if code.autoprog is None else ("network.0", "network.2")


def sub_network(model: Any, least: int, layers: int, most: int, splits: Callable[[int], Sequence[int]]) -> Any:
    """The published sub-network of `layers` layers as a function of images.

    Args:
        model: the supernet, of `most` layers.
        least: layers of the smallest candidate.
        splits: layers of both kinds.
    """
    if not isinstance(model, Kinds):
        model.set_sample_config({"layer_num": layers, "min_layer_num": least, "max_layer_num": most})
        return model
    small, own, full = splits(least), splits(layers), splits(most)
    kept = [nested(*numbers) for numbers in zip(small, own, full, strict=True)]
    return lambda x: model(x, kept)


# -- latents -------------------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """A network of the form of DiT: `[batch, 4, side, side]`, time steps and labels to `[batch, 8, side, side]`."""

    def __init__(self, side: int = 16, width: int = 24, depth: int = 4, labels: int = 6) -> None:
        super().__init__()
        self.width = width
        self.patch = nn.Conv2d(4, width, 2, 2)
        self.register_buffer("pos_embed", sines(side // 2, width)[None])
        self.time, self.label = nn.Linear(width, width), nn.Embedding(labels, width)
        self.blocks = nn.ModuleList(Modulated(width) for _ in range(depth))
        self.modulation, self.norm = nn.Linear(width, 2 * width), nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, 32)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, row: Tensor | None = None) -> Tensor:
        """`row` is added to the conditioning."""
        side = x.shape[-1] // 2
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * torch.exp(-torch.arange(self.width // 2, device=t.device) * 0.5)
        c = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(y)
        c = c if row is None else c + row
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(nn.functional.silu(c)).chunk(2, 1)
        x = self.out(self.norm(x) * (1 + scale[:, None]) + shift[:, None])
        x = x.reshape(-1, side, side, 2, 2, 8).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, 8, 2 * side, 2 * side)


class Modulated(nn.Module):
    """A block whose branch is scaled and shifted by the conditioning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.modulation = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 3 * width)
        self.up, self.down, self.mix = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens `[batch, tokens, width]` and conditioning `[batch, width]` to tokens."""
        shift, scale, gate = self.modulation(nn.functional.silu(c)).chunk(3, 1)
        y = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        y = y + self.mix(y.mean(1, keepdim=True))
        return x + gate[:, None] * self.down(nn.functional.gelu(self.up(y)))


class WithoutStage(nn.Module):
    """The published DiT without its own identifier: the rows of its table are zeros."""

    def __init__(self, dit: nn.Module) -> None:
        super().__init__()
        self.dit = dit
        with torch.no_grad():
            self.dit.get_parameter("s_embedder.embedding_table.weight").zero_()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As `Denoiser`."""
        return self.dit(x, t, y, torch.zeros_like(y))


def sines(side: int, width: int) -> Tensor:
    """A table `[side * side, width]` of sines and cosines of columns, followed by those of rows."""
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = (grid.flatten() for grid in torch.meshgrid(*2 * [torch.arange(side)], indexing="ij"))
    parts = [wave(place[:, None] * frequencies) for place in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()


def denoiser(code: Code, side: int = 16, dropout: float = 0.0) -> Any:
    """The published DiT with small sizes, or `Denoiser`; label 5 is the null class."""
    torch.manual_seed(0)
    if code.zero is None:
        return perturbed(Denoiser(side))
    dit = code.module(code.zero, "apz_models").DiT
    made = dit(input_size=side, hidden_size=24, depth=4, num_heads=3, num_classes=5 if dropout else 6,
               class_dropout_prob=dropout)  # fmt: skip
    return perturbed(made)


def latents(side: int = 16, count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a denoiser."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, side, side, generator=generator)
    return x, torch.randint(1000, (count,), generator=generator), torch.randint(5, (count,), generator=generator)


def block_of(name: str, chain: str) -> int | None:
    """The number of the block of a chain that a tensor belongs to."""
    rest = name.removeprefix(f"{chain}.")
    return int(rest.split(".")[0]) if rest != name else None
