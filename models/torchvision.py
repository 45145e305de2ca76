"""Adapter for torchvision: untrained image classifiers by name (`torchvision:resnet18`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torchvision

from progc.errors import InputError, did_you_mean, one_line
from progc.models.images import ImageConfig

if TYPE_CHECKING:
    from torch import nn

# Models whose auxiliary head or stem needs more than 224 pixels.
_SIZES = {"Inception3": 299}


def locate(name: str, args: Mapping[str, Any]) -> tuple[Callable[[], nn.Module], str | None]:
    """Returns a constructor of the classifier, and None: it is not trained.

    Args:
        name: name of the classifier.
        args: arguments of its constructor, such as `num_classes`.

    Raises:
        InputError: torchvision has no classifier of that name, or an argument would load weights.
    """
    if loads := next((key for key in ("weights", "weights_backbone", "pretrained") if key in args), None):
        raise InputError(f"torchvision:{name}: progc downloads nothing; give --weights FILE, not `{loads}`")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        if name in torchvision.models.list_models():
            raise InputError(
                f"torchvision:{name} is not an image classifier, so its inputs are unknown; "
                "write a file with build() and example_inputs(), and give its path instead"
            )
        meant = did_you_mean(name, known)
        raise InputError(f"torchvision has no model `{name}`{meant or ';'} see torchvision.models.list_models()")
    return lambda: _build(name, dict(args)), None


def drop_path(name: str) -> tuple[str, ...]:
    """Returns arguments that may set the rate of drop-path."""
    return ("stochastic_depth_prob",)


def images(name: str, args: Mapping[str, Any]) -> ImageConfig | None:
    """Returns how the classifier wants its images, by the transforms of its best weights."""
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    values = {
        "mean": preset.mean, "std": preset.std, "interpolation": preset.interpolation.value,
        "crop_pct": preset.crop_size[0] / preset.resize_size[0],
    }  # fmt: skip
    return ImageConfig.of(values, f"torchvision:{name}")


def _build(name: str, args: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **args)
    except Exception as error:
        if not args:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise InputError(f"torchvision cannot build `{name}` with {given}: {one_line(error, 200)}") from error
    return model


def example(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns float images `[2, 3, height, width]` of the `image_size` of the model, or of 224 pixels."""
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    if type(model).__module__.removeprefix("torchvision.models.").partition(".")[0] in (
        "detection", "optical_flow", "segmentation", "video", "quantization",
    ):  # fmt: skip
        return None
    size = getattr(model, "image_size", None) or _SIZES.get(type(model).__name__, 224)
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),), {}
