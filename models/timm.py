"""Models of timm by name, built untrained: `timm:resnet18`, with or without a weight tag."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import timm
import torch

from progc.errors import InputError
from progc.files.suggestions import did_you_mean

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
