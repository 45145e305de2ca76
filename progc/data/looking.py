"""Finds out what the parts of a batch are (progc/data/parts.py) where the task does not say it.

Types and shapes tell most parts. A floating target on the grid of the image may be a map or noise, which values tell:
neighbours in a map are alike, and those in noise have nothing to do with each other. What lies between is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.data.parts import WORDS, Question, Size, names

SAMPLES = 32
"""Number of samples whose values are looked at."""
ALIKE = 0.5
"""Least correlation of neighbours in a map."""
ERRORS = 5.0
"""Standard errors within which a correlation counts as none."""


def look(batch: Any, words: Sequence[str | None], given: Sequence[bool]) -> list[str]:
    """Returns a word for each leaf of a batch, or a `Question` where it may be several things.

    Args:
        batch: some samples.
        words: words that the task gives to the leaves; None where it gives none.
        given: which leaves the network gets as they are.
    """
    leaves = pytree.tree_leaves(batch)
    image = _image(leaves, words, given)
    size = None if image is None else (leaves[image].shape[-2], leaves[image].shape[-1])
    found: list[str] = []
    guessed = [word is None for word in words]
    for place, (name, leaf, word) in enumerate(zip(names(batch), leaves, words, strict=True)):
        if word is None:
            word = "image" if place == image else _word(name, leaf, size, given[place])
        found.append(word)
    if image is not None and guessed[image] and found[image] == "image":
        _follow_noise(leaves, found, guessed, image)
    return found


def _image(leaves: Sequence[Any], words: Sequence[str | None], given: Sequence[bool]) -> int | None:
    """The place of the image: as the task says, else the first one that the network gets, else the first one."""
    if "image" in words:
        return list(words).index("image")
    dense = [k for k, leaf in enumerate(leaves) if _is_image(leaf) and words[k] != "fixed"]
    return next((k for k in dense if given[k]), next(iter(dense), None))


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() == 4 and leaf.is_floating_point()


def _word(name: str, leaf: Any, size: Size | None, is_input: bool) -> str:
    if size is None or not isinstance(leaf, torch.Tensor) or leaf.dim() not in (3, 4):
        return "fixed"
    same = tuple(leaf.shape[-2:]) == size
    if not leaf.is_floating_point():
        return "nearest" if same else "fixed"
    if is_input and same and leaf.dim() == 4:
        return "image"
    if not same and (leaf.dim() == 3 or not _ratio(leaf, size)):
        if leaf.dim() == 3:
            return "fixed"
        return _question(name, leaf, f"has neither the size of the image, {size[0]}x{size[1]}, nor a part of it")
    grid = Grid.of(leaf)
    if grid.noise == grid.map:
        return _question(name, leaf, f"may be a map or noise (correlation of neighbours {grid.words})")
    return "noise" if grid.noise else "area"


def _ratio(leaf: torch.Tensor, size: Size) -> bool:
    """Whether the grid of a part is that of the image, a number of times coarser or finer."""
    (height, width), (own_height, own_width) = size, leaf.shape[-2:]
    alike = own_height * width == own_width * height
    return alike and (height % own_height == 0 or own_height % height == 0)


def _question(name: str, leaf: torch.Tensor, what: str) -> Question:
    shape, dtype = ", ".join(["N", *map(str, leaf.shape[1:])]), str(leaf.dtype).removeprefix("torch.")
    return Question(
        f"{name} of a batch, [{shape}] of {dtype}, {what}; say what each item is, as in "
        f'parts = ("image", "noise"), with the words {", ".join(WORDS)}, or write resize(batch, size)'
    )


@dataclasses.dataclass(frozen=True)
class Grid:
    """How alike neighbours are, `[samples, ..., height, width]`.

    Attributes:
        correlations: of vertical and of horizontal neighbours; empty for constant values.
        errors: standard errors of both, for independent values.
    """

    correlations: tuple[float, ...]
    errors: tuple[float, ...]

    @classmethod
    def of(cls, leaf: torch.Tensor) -> Grid:
        """Measures a part of a batch."""
        values = leaf.detach().double().cpu()
        values = values - values.mean((0, -2, -1), keepdim=True)
        power = float(values.square().mean())
        if not power > 0:
            return cls((), ())
        products = [values[..., 1:, :] * values[..., :-1, :], values[..., 1:] * values[..., :-1]]
        known = [part for part in products if part.numel()]
        return cls(
            tuple(float(part.mean()) / power for part in known), tuple(1 / math.sqrt(part.numel()) for part in known)
        )

    @property
    def noise(self) -> bool:
        """Whether neighbours have nothing to do with each other."""
        pairs = zip(self.correlations, self.errors, strict=True)
        return bool(self.correlations) and all(abs(value) <= ERRORS * error for value, error in pairs)

    @property
    def map(self) -> bool:
        """Whether neighbours are alike."""
        return all(value >= ALIKE for value in self.correlations)

    @property
    def words(self) -> str:
        """The correlations as text."""
        return " and ".join(f"{value:.2f}" for value in self.correlations)


def _follow_noise(leaves: Sequence[Any], found: list[str], guessed: Sequence[bool], image: int) -> None:
    """Subsamples an image that noise is part of, together with the maps beside it, in place."""
    picture = leaves[image]
    alike = [
        k for k, leaf in enumerate(leaves)
        if k != image and isinstance(leaf, torch.Tensor) and leaf.shape == picture.shape and leaf.is_floating_point()
    ]  # fmt: skip
    noisy = any(found[k] == "noise" and _contains(picture, leaves[k]) for k in alike)
    clean = any(found[k] == "area" and _noise_between(picture, leaves[k]) for k in alike)
    if noisy or clean:
        for place in (image, *(k for k in alike if found[k] in ("area", "image") and guessed[k])):
            found[place] = "nearest"


def _contains(picture: torch.Tensor, noise: torch.Tensor) -> bool:
    """Whether noise is part of a picture: more correlated, sample by sample, than independent numbers are."""
    x, e = _centred(picture), _centred(noise)
    lengths = x.square().sum(1) * e.square().sum(1)
    squares = (x * e).sum(1).square() / lengths.clamp_min(torch.finfo(lengths.dtype).tiny) * x.shape[1]
    return float(squares.mean()) > 1 + ERRORS * math.sqrt(2 / len(squares))


def _noise_between(picture: torch.Tensor, clean: torch.Tensor) -> bool:
    """Whether a picture is a multiple of a clean one and noise."""
    x, y = _centred(picture), _centred(clean)
    share = (x * y).sum(1, keepdim=True) / y.square().sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    rest = x - share * y
    if float(rest.square().mean()) <= 1e-4 * float(x.square().mean()):
        return False
    return Grid.of(rest.reshape(picture.shape)).noise


def _centred(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().double().cpu().flatten(1)
    return flat - flat.mean(1, keepdim=True)
