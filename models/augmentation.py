"""Strengths of augmentation as options of timm.data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
