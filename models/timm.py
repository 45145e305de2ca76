"""Adapter for timm: untrained models by name (`timm:resnet18`), and the transforms of timm.data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch

from progc.errors import InputError, did_you_mean, one_line
from progc.models.images import ImageConfig

if TYPE_CHECKING:
    from torch import nn


_WEIGHTS = ("pretrained", "checkpoint_path", "cache_dir")


def locate(name: str, args: Mapping[str, Any]) -> tuple[Callable[[], nn.Module], str | None]:
    """Returns a constructor of the model, and None: it is not trained. The name may have a weight tag.

    Args:
        name: name of the model.
        args: arguments of `timm.create_model`, such as `num_classes` and `img_size`.

    Raises:
        InputError: timm has no model of that name, or an argument would load weights.
    """
    if loads := next((key for key in _WEIGHTS if key in args), None):
        raise InputError(f"timm:{name}: progc downloads nothing and reads no pickles; give --weights, not `{loads}`")
    architecture = name.partition(".")[0]
    known = timm.list_models()
    if architecture not in known:
        meant = did_you_mean(architecture, known)
        raise InputError(f"timm has no model `{name}`{meant or ';'} see timm.list_models() for all {len(known)}")
    return lambda: _build(name, dict(args)), None


def drop_path(name: str) -> tuple[str, ...]:
    """Returns arguments that may set the rate of drop-path."""
    return ("drop_path_rate",)


def images(name: str, args: Mapping[str, Any]) -> ImageConfig | None:
    """Returns how the model wants its images, by the config of its weights in timm."""
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # an unknown weight tag; building the model says so
        return None
    if config is None:
        return None
    known = {**config.to_dict(), **(args.get("pretrained_cfg_overlay") or {})}
    keys = [field.name for field in dataclasses.fields(ImageConfig)]
    return ImageConfig.of({key: known[key] for key in keys if known.get(key)}, f"timm:{name}")


def _build(name: str, args: dict[str, Any]) -> nn.Module:
    size = args.get("img_size")
    try:
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **args)
        except TypeError as error:
            if size is None or "img_size" not in str(error):
                raise
            # A network for images of any size: the argument says which size it is for.
            rest = {key: value for key, value in args.items() if key != "img_size"}
            model = timm.create_model(name, pretrained=False, **rest)
    except RuntimeError as error:  # an unknown weight tag
        raise InputError(f"timm cannot build `{name}`: {error}; leave out the tag after the dot") from error
    except Exception as error:
        if not args:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise InputError(f"timm cannot build `{name}` with {given}: {one_line(error, 200)}") from error
    config = getattr(model, "pretrained_cfg", None)
    if config and config.get("input_size") and ("in_chans" in args or size is not None):
        channels, *sides = config["input_size"]
        sides = sides if size is None else [size, size] if isinstance(size, int) else list(size)
        # `nn.Module` is annotated to take tensors and modules only.
        vars(model)["pretrained_cfg"] = {**config, "input_size": (args.get("in_chans", channels), *sides)}
    return model


def example(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns float images `[2, channels, height, width]` of the input size of the model."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size is None:
        return None
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(built, tuple) and len(built) == 2 and len(size) == 3:
        size = (size[0], *built)  # the input size differs from that of the pretrained weights
    return (torch.randn(2, *size, generator=torch.Generator().manual_seed(0)),), {}


def timm_options(
    *, rand_augment: float | None = None, random_erasing: float | None = None, mixup: float | None = None
) -> dict[str, dict[str, Any]]:
    """Returns keyword arguments for `timm.data.create_transform` and `timm.data.Mixup`.

    RandAugment uses a magnitude standard deviation of 0.5 and increasing severity, as in the DeiT recipe. Erased areas
    are filled with noise, and there is no further colour jitter, as in AutoProg's script (Li et al., CVPR 2022), which
    is the same whether RandAugment is off or on. Strengths that are None are left out, and so is `Mixup` with an alpha
    of 0, which timm does not accept.
    """
    transform: dict[str, Any] = {"color_jitter": None, "re_mode": "pixel"}
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
    size: tuple[int, int],
    *,
    rand_augment: float | None,
    random_erasing: float | None,
    config: ImageConfig | None = None,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Returns transforms of PIL images for training and for validation.

    Args:
        size: height and width.
        rand_augment, random_erasing: strengths, see `timm_options`.
        config: how the model wants its images; None takes the defaults.
    """
    from timm.data import create_transform

    wanted = config or ImageConfig()
    options = timm_options(rand_augment=rand_augment, random_erasing=random_erasing)["create_transform"]
    own: dict[str, Any] = {"mean": wanted.mean, "std": wanted.std}
    learning = create_transform((3, *size), is_training=True, interpolation="random", **own, **options)
    return learning, create_transform(
        (3, *size), is_training=False, interpolation=wanted.interpolation, crop_pct=wanted.crop_pct,
        crop_mode=wanted.crop_mode, **own,
    )  # fmt: skip
