"""Regularisation of a stage as options of the libraries that augment samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from progc.schedule.stage import Regularisation


def timm_options(regularisation: Regularisation) -> dict[str, dict[str, Any]]:
    """Keyword arguments of `timm.data.create_transform` and `timm.data.Mixup`.

    RandAugment as in the published recipe: standard deviation of the magnitude 0.5, increasing severity. What the
    regularisation leaves open is left out, and so is `Mixup` where alpha is 0, which timm does not take.
    """
    transform: dict[str, Any] = {}
    if regularisation.rand_augment is not None:
        magnitude = regularisation.rand_augment
        transform["auto_augment"] = f"rand-m{magnitude:g}-mstd0.5-inc1" if magnitude > 0 else None
    if regularisation.random_erasing is not None:
        transform["re_prob"] = regularisation.random_erasing
    options: dict[str, dict[str, Any]] = {"create_transform": transform}
    if regularisation.mixup:
        options["Mixup"] = {"mixup_alpha": regularisation.mixup}
    return options


def transforms(
    size: tuple[int, int], regularisation: Regularisation
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """timm's transforms of PIL images for training and for validation, at `size` (height, width)."""
    from timm.data import create_transform

    learning = create_transform((3, *size), is_training=True, **timm_options(regularisation)["create_transform"])
    return learning, create_transform((3, *size), is_training=False)
