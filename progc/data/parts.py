"""What each part of a batch is, and what becomes of it at another image size.

| part      | at another size                                                                       |
| --------- | ------------------------------------------------------------------------------------- |
| `image`   | bilinear, with antialiasing                                                           |
| `area`    | a dense target of numbers, such as depth or a heat map: means of areas                |
| `nearest` | a dense target of class indices, or an image that noise is part of: nearest entries   |
| `noise`   | independent random numbers: a subset of them, which has the same distribution         |
| `fixed`   | stays                                                                                 |

Means of independent numbers have a smaller variance, so noise that is resampled like an image becomes another task. An
image that noise was added to follows its noise entry by entry, and every pointwise relation between the parts stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from progc.errors import InputError, did_you_mean

Size = tuple[int, int]
Parts = Mapping[Any, str] | Sequence[str]
"""A word for each item of a batch that is a tuple, or for each key (some may be left out) of one that is a mapping."""

WORDS = ("image", "area", "nearest", "noise", "fixed")


class Question(str):
    """In place of a word: it is not known what a part is, and this sentence asks for it when the part is resized."""


def check(parts: Any, where: str) -> None:
    """Checks that parts are named by known words.

    Args:
        parts: what the user gives.
        where: how a message begins.

    Raises:
        InputError: not a tuple or mapping of words, or an unknown word.
    """
    words = list(parts.values()) if isinstance(parts, Mapping) else parts
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise InputError(
            f'{where}: expected a word for each item of a batch, such as ("image", "noise"), got {parts!r}'
        )
    for word in words:
        if word not in WORDS:
            meant = did_you_mean(str(word), WORDS)
            raise InputError(f"{where}: unknown part `{word}`{meant or ';'} expected {', '.join(WORDS)}")


def spread(parts: Parts, batch: Any) -> list[str | None]:
    """Returns the word for each leaf of a batch; None for the keys that are left out.

    Raises:
        InputError: the batch has other items than the parts name.
    """
    paths, _ = pytree.tree_flatten_with_path(batch)
    keys = [_key(path) for path, _ in paths]
    known = list(dict.fromkeys(keys))
    if isinstance(parts, Mapping):
        for name in parts:
            if name not in known:
                meant = did_you_mean(str(name), [str(key) for key in known])
                raise InputError(f"parts: a batch has no `{name}`{meant or ';'} it has {', '.join(map(str, known))}")
        return [parts.get(key) for key in keys]
    if isinstance(batch, Mapping) or len(known) != len(parts):
        has = f"the keys {', '.join(map(str, known))}" if isinstance(batch, Mapping) else f"{len(known)} items"
        raise InputError(f"parts: expected a word for each part of a batch, which has {has}; got {tuple(parts)}")
    return [parts[known.index(key)] for key in keys]


def _key(path: Sequence[Any]) -> Any:
    """The item of the batch that a leaf belongs to: an index or a key; 0 where the batch is a tensor."""
    first = path[0] if path else None
    return next((getattr(first, name) for name in ("key", "idx", "name") if hasattr(first, name)), 0)


def names(batch: Any) -> list[str]:
    """Returns the name of each leaf of a batch, for messages."""
    paths, _ = pytree.tree_flatten_with_path(batch)
    return [f"`{key}`" if isinstance(key := _key(path), str) else f"item {key}" for path, _ in paths]


def image_size(leaves: Sequence[Any], words: Sequence[str]) -> Size | None:
    """Returns height and width of the batch's image; None if it has none.

    A batch whose image is subsampled has no part that is called `image`: its first dense part counts.
    """
    for wanted in (("image",), ("nearest",), ("noise", "area")):
        for leaf, word in zip(leaves, words, strict=True):
            if word in wanted and isinstance(leaf, torch.Tensor):
                return leaf.shape[-2], leaf.shape[-1]
    return None


def resized(batch: Any, words: Sequence[str], size: Size) -> Any:
    """Returns the batch with images of another size; a part on a coarser or finer grid keeps its ratio to the image.

    Args:
        batch: the batch.
        words: a word for each leaf, or a `Question`.
        size: height and width of the image.

    Raises:
        InputError: it is not known what a part is, or it cannot have that size.
    """
    leaves, spec = pytree.tree_flatten(batch)
    before = image_size(leaves, words)
    if before is None or before == tuple(size):
        return batch
    made = []
    for name, leaf, word in zip(names(batch), leaves, words, strict=True):
        if word == "fixed" or not isinstance(leaf, torch.Tensor):
            made.append(leaf)
        elif isinstance(word, Question):
            raise InputError(word)
        else:
            made.append(_resampled(leaf, word, _follows(name, leaf, before, size), name))
    return pytree.tree_unflatten(made, spec)


def _follows(name: str, leaf: torch.Tensor, before: Size, size: Size) -> Size:
    """The size of a part beside an image that goes from `before` to `size`."""
    found = []
    for own, old, new in zip(leaf.shape[-2:], before, size, strict=True):
        if own * new % old:
            raise InputError(
                f"{name} of a batch, {list(leaf.shape)}, cannot follow an image from {before[0]}x{before[1]} to "
                f"{size[0]}x{size[1]} pixels; choose other resolutions, call it fixed in parts, or write "
                "resize(batch, size)"
            )
        found.append(own * new // old)
    return found[0], found[1]


def _resampled(leaf: torch.Tensor, word: str, size: Size, name: str) -> torch.Tensor:
    here = tuple(leaf.shape[-2:])
    if here == size:
        return leaf
    if word in ("nearest", "noise"):
        if word == "noise" and (size[0] > here[0] or size[1] > here[1]):
            raise InputError(
                f"{name} of a batch is noise of {here[0]}x{here[1]}, and {size[0]}x{size[1]} are needed; make samples "
                "at the full image size, or write resize(batch, size)"
            )
        return _entries(leaf, size)
    flat = leaf.reshape(1, -1, *here) if leaf.dim() != 4 else leaf
    value = flat if flat.is_floating_point() else flat.float()
    if word == "area" and size[0] <= here[0] and size[1] <= here[1]:
        value = F.interpolate(value, size=list(size), mode="area")
    else:
        value = F.interpolate(value, size=list(size), mode="bilinear", align_corners=False, antialias=True)
    if not leaf.is_floating_point():
        value = value.round().to(leaf.dtype)
    return value.reshape(*leaf.shape[:-2], *size)


def _entries(leaf: torch.Tensor, size: Size) -> torch.Tensor:
    """The entries nearest to the centres of the new ones; all different where the size does not rise."""
    for dim, new in zip((-2, -1), size, strict=True):
        old = leaf.shape[dim]
        places = torch.arange(new, device=leaf.device).mul_(2).add_(1).mul_(old).div_(2 * new, rounding_mode="floor")
        leaf = leaf.index_select(dim, places)
    return leaf
