"""How a model wants its images: size of the crop, interpolation and normalisation, as its library or file says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError, did_you_mean

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How images become inputs of a model. The defaults are those of ImageNet classifiers.

    Attributes:
        mean, std: of each channel, for values from 0 to 1.
        interpolation: one of `INTERPOLATIONS`, for validation; training draws bilinear or bicubic for each image.
        crop_pct: side of the crop divided by the shorter side of the resized image, for validation.
        crop_mode: `center`, `squash` (both sides are resized) or `border` (nothing is cut off).
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> ImageConfig:
        """Reads a data config as timm writes it (`timm.data.resolve_model_data_config`); missing keys have defaults.

        Args:
            values: the config; `input_size` may be among the keys, and does not count.
            where: how messages begin.

        Raises:
            InputError: an unknown key, or an invalid value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name in known:
                found[name] = tuple(float(one) for one in value) if name in ("mean", "std") else value
            elif name != "input_size":
                meant = did_you_mean(str(name), known) or f"; keys are {', '.join(known)}"
                raise InputError(f"{where}: unknown key `{name}`{meant}")
        made = cls(**found)
        if made.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"{where}: interpolation: expected {', '.join(INTERPOLATIONS)}, got {made.interpolation!r}"
            )
        if not isinstance(made.crop_pct, (int, float)) or not 0 < made.crop_pct <= 1:
            raise InputError(f"{where}: crop_pct: expected a number above 0 and at most 1, got {made.crop_pct!r}")
        if made.crop_mode not in ("center", "squash", "border"):
            raise InputError(f"{where}: crop_mode: expected center, squash or border, got {made.crop_mode!r}")
        return made

    def __str__(self) -> str:
        numbers = [", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std)]
        crop = f"{self.crop_mode} crop {self.crop_pct:.4g}"
        return f"mean {numbers[0]}, std {numbers[1]}, {self.interpolation}, {crop}"
