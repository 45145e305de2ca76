"""Models of timm by name, built untrained: `timm:resnet18`, with or without a weight tag.

Strengths of augmentation as options of timm.data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import timm
import torch

from progc.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


def locate(name: str) -> tuple[Callable[[], nn.Module], str | None]:
    """Raises InputError with suggestions if timm has no model of that name."""
    architecture = name.partition(".")[0]
    known = timm.list_models()
    if architecture not in known:
        meant = did_you_mean(architecture, known)
        raise InputError(f"timm has no model `{name}`{meant or ';'} see timm.list_models() for all {len(known)}")
    return lambda: _build(name), None


def _build(name: str) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # an unknown weight tag
        raise InputError(f"timm cannot build `{name}`: {error}; leave out what follows the dot") from error
    return model


def example(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Float images (2, C, H, W) of the model's own input size."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size is None:
        return None
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(built, tuple) and len(built) == 2 and len(size) == 3:
        size = (size[0], *built)  # built for another size than its pretrained weights
    return (torch.randn(2, *size, generator=torch.Generator().manual_seed(0)),), {}


def timm_options(
    *, rand_augment: float | None = None, random_erasing: float | None = None, mixup: float | None = None
) -> dict[str, dict[str, Any]]:
    """Keyword arguments of `timm.data.create_transform` and `timm.data.Mixup`.

    RandAugment as in the published recipe: standard deviation of the magnitude 0.5, increasing severity. What the
    regularisation leaves open is left out, and so is `Mixup` where alpha is 0, which timm does not take.
    """
    transform: dict[str, Any] = {}
    if rand_augment is not None:
        magnitude = rand_augment
        transform["auto_augment"] = f"rand-m{magnitude:g}-mstd0.5-inc1" if magnitude > 0 else None
    if random_erasing is not None:
        transform["re_prob"] = random_erasing
    options: dict[str, dict[str, Any]] = {"create_transform": transform}
    if mixup:
        options["Mixup"] = {"mixup_alpha": mixup}
    return options


def transforms(
    size: tuple[int, int], *, rand_augment: float | None, random_erasing: float | None
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """timm's transforms of PIL images for training and for validation, at `size` (height, width)."""
    from timm.data import create_transform

    options = timm_options(rand_augment=rand_augment, random_erasing=random_erasing)["create_transform"]
    learning = create_transform((3, *size), is_training=True, **options)
    return learning, create_transform((3, *size), is_training=False)
