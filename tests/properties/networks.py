"""Recipes of random networks: data that prints, draws from any `random.Random`, and builds the same every time."""

from __future__ import annotations

import dataclasses
import random
import warnings
import zlib
from typing import Any

import torch
from torch import Tensor, nn

import progc
from progc.ir.program import Program
from tests.properties import attention_pieces, image_pieces, token_pieces  # noqa: F401  they register themselves
from tests.properties.pieces import L2, PIECES, SIDE, TOKENS, image_norm, table, token_norm

VOCABULARY = 11
FEATURES = 3
WRAPS = ("residual", "plain", "pre", "pre", "post", "layer scale")


@dataclasses.dataclass(frozen=True)
class Stage:
    """`repeat` blocks of one piece: alike in everything but their weights. `seed` draws what the piece is made of."""

    piece: str
    seed: int
    wrap: str = "plain"
    repeat: int = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A network: input and output of a family (`tokens`, `ids`, `images`, `vectors`), and stages between them."""

    family: str
    width: int
    stages: tuple[Stage, ...]
    head: str = "linear"
    seed: int = 0


HEADS = {
    "tokens": ("linear", "pooled", "normed", "aux", "flat", "pool weights", "cosine"),
    "ids": ("linear", "tied", "tied normed", "aux", "pooled", "tied rms"),
    "images": ("pooled", "flat", "map", "aux", "normed"),
    "vectors": ("linear", "normed", "aux", "cosine"),
}


def draw_recipe(rng: random.Random) -> Recipe:
    """Any recipe."""
    family = rng.choice(["tokens", "tokens", "images", "images", "ids", "vectors"])
    names = sorted(PIECES["tokens" if family == "ids" else family])
    stages = tuple(
        Stage(rng.choice(names), rng.randrange(10**6), rng.choice(WRAPS), rng.choice([1, 1, 2, 2, 3]))
        for _ in range(rng.choice([1, 2, 2, 3]))
    )
    return Recipe(family, rng.choice([4, 6, 8, 8]), stages, rng.choice(HEADS[family]), rng.randrange(10**6))


class Block(nn.Module):
    """A piece on its own, beside a skip path, or with norms before or behind."""

    def __init__(self, kind: str, stage: Stage, width: int) -> None:
        super().__init__()
        rng = random.Random(stage.seed)
        self.wrap = stage.wrap
        self.body = PIECES[kind][stage.piece](width, rng)
        make = image_norm if kind == "images" else token_norm
        self.norm = make(width, rng) if stage.wrap in ("pre", "post") else nn.Identity()
        if stage.wrap == "layer scale":
            self.gamma = table(width, 1, 1) if kind == "images" else table(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.wrap == "plain":
            return self.body(x)
        if self.wrap == "residual":
            return x + self.body(x)
        if self.wrap == "pre":
            return x + self.body(self.norm(x))
        if self.wrap == "post":
            return self.norm(x + self.body(x))
        return x + self.gamma * self.body(x)


class Net(nn.Module):
    """The network of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        rng = random.Random(recipe.seed)
        self.family, self.head, width = recipe.family, recipe.head, recipe.width
        kind = "tokens" if recipe.family == "ids" else recipe.family
        if recipe.family == "ids":
            self.embed = nn.Embedding(VOCABULARY, width)
        else:
            self.embed = nn.Conv2d(FEATURES, width, 3, padding=1) if kind == "images" else nn.Linear(FEATURES, width)
        self.places = table(TOKENS, width) if kind == "tokens" and rng.random() < 0.5 else None
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(kind, stage, width) for _ in range(stage.repeat)) for stage in recipe.stages
        )
        rms = nn.RMSNorm(width, eps=1e-6)
        norm = image_norm(width, rng) if kind == "images" else nn.LayerNorm(width)
        self.norm = (
            rms if self.head == "tied rms" else norm if self.head in ("normed", "tied normed") else nn.Identity()
        )
        self.out = self._out(kind, width)
        self.aux = nn.Linear(width, 3) if self.head == "aux" else None
        self.score = table(width)
        self.logit = nn.Parameter(torch.tensor(1.5))

    def _out(self, kind: str, width: int) -> nn.Module:
        if self.head == "flat":
            return nn.Linear(width * (SIDE * SIDE if kind == "images" else TOKENS), 5)
        if self.head == "map":
            return nn.Conv2d(width, 2, 1)
        out = nn.Linear(width, VOCABULARY if self.family == "ids" else 5, bias=not self.head.startswith("tied"))
        if self.head.startswith("tied"):
            out.weight = self.embed.weight
        return out

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        if self.places is not None:
            x = x + self.places
        middle = x
        for stage in self.stages:
            for block in stage:
                x = block(x)
            middle = middle if middle is not x and stage is self.stages[-1] else x
        x = self.norm(x)
        images = x.dim() == 4
        if self.head == "aux":
            middle = middle.mean((2, 3)) if images else middle
            return self.out(x.mean((2, 3)) if images else x), self.aux(middle)
        if self.head == "cosine":
            unit = L2(1, gain=False)
            return self.logit * nn.functional.linear(unit(x), unit(self.out.weight))
        if self.head == "pool weights":
            weight = torch.einsum("btc,c->bt", x, self.score).softmax(-1)
            return self.out(torch.einsum("bt,btc->bc", weight, x))
        if self.head == "flat":
            return self.out(x.flatten(1))
        if images and self.head != "map":
            x = x.mean((2, 3))
        return self.out(x.mean(1) if self.head == "pooled" and x.dim() == 3 else x)


def example(recipe: Recipe) -> Tensor:
    """An input of the network."""
    generator = torch.Generator().manual_seed(1)
    if recipe.family == "ids":
        return torch.randint(0, VOCABULARY, (2, TOKENS), generator=generator)
    shape = {"tokens": (2, TOKENS, FEATURES), "images": (2, FEATURES, SIDE, SIDE), "vectors": (3, FEATURES)}
    return torch.randn(shape[recipe.family], generator=generator, dtype=torch.float64)


def build(recipe: Recipe) -> nn.Module:
    """The module in float64, no tensor left at its initial value."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(recipe.seed)
        model = Net(recipe).double()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + recipe.seed)
                noise = 0.2 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(noise.abs() if "var" in name else noise)
    return model


def captured(recipe: Recipe, dtype: torch.dtype = torch.float64) -> Program:
    """The captured network.

    Raises:
        CaptureError: torch.export cannot capture it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = example(recipe)
        return progc.capture(build(recipe).to(dtype), (x.to(dtype) if x.is_floating_point() else x,))
