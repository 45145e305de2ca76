"""Adapter for transformers: models from a config.json or a checkpoint folder (`transformers:./my-bert`).

The class is the first entry of `architectures` in the config, or else the base model of its `model_type`. Models are
built without a key-value cache, which training does not use. Nothing is downloaded, no code from the folder runs, and
pickled weights are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from progc.errors import InputError, did_you_mean, one_line
from progc.models.arguments import checked
from progc.models.checkpoint import has_weights, read_config
from progc.models.images import ImageConfig

if TYPE_CHECKING:
    from torch import nn

_TOKENS = 16  # length of the example sequence; growth does not depend on it


def locate(name: str, args: Mapping[str, Any]) -> tuple[Callable[[], nn.Module], str | None]:
    """Returns a constructor of the model, and the folder of its weights if there are any.

    Args:
        name: path of a config.json or its folder.
        args: entries that replace those of the config, such as `num_labels`.

    Raises:
        InputError: the config does not exist, its model is not in the installed transformers, or it has no such entry.
    """
    folder, values = read_config(Path(name))
    kind = values.get("model_type")
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        meant = did_you_mean(str(kind), known)
        raise InputError(
            f"transformers:{name}: model_type `{kind}` is unknown to transformers {transformers.__version__}"
            f"{meant or ';'} fix config.json, or write a file with build()"
        )
    try:
        config = transformers.AutoConfig.for_model(**values)
        known = [*config.to_dict(), "num_labels"]
        config = transformers.AutoConfig.for_model(**{**values, **args}) if args else config
    except Exception as error:  # each config class raises different exceptions
        raise InputError(f"transformers:{name}: config.json is not valid: {one_line(error, 300)}") from error
    checked(f"transformers:{name}", args, known)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    named = next((cls for cls in values.get("architectures") or () if hasattr(transformers, cls)), None)
    trained = str(folder) if has_weights(folder) else None

    def construct() -> nn.Module:
        try:
            if trained and named:
                return getattr(transformers, named).from_pretrained(
                    folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
            return getattr(transformers, named)(config) if named else transformers.AutoModel.from_config(config)
        except Exception as error:
            raise InputError(f"transformers:{name} cannot be built: {one_line(error, 300)}") from error

    return construct, trained if named else None


def drop_path(name: str) -> tuple[str, ...]:
    """Returns arguments that may set the rate of drop-path."""
    return ("drop_path_rate",)


_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of PIL's numbers for interpolation."""


def images(name: str, args: Mapping[str, Any]) -> ImageConfig | None:
    """Returns how the model wants its images, by the preprocessor_config.json beside its config, if there is one."""
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    if not (folder / "preprocessor_config.json").is_file():
        return None
    _, values = read_config(folder / "preprocessor_config.json")
    if "image_mean" not in values and "resample" not in values:
        return None  # of a model for text or sound
    found: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0, "crop_mode": "squash"}
    if values.get("do_normalize", True):
        found.update({key: values[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in values})
    if isinstance(number := values.get("resample"), int) and 0 <= number < len(_RESAMPLING):
        found["interpolation"] = _RESAMPLING[number]
    crop, size = _side(values.get("crop_size")), _side(values.get("size"))
    if values.get("crop_pct"):
        found.update(crop_pct=values["crop_pct"], crop_mode="center")
    elif values.get("do_center_crop") and crop and size and crop <= size:
        found.update(crop_pct=crop / size, crop_mode="center")
    return ImageConfig.of(found, f"{folder / 'preprocessor_config.json'}")


def _side(size: Any) -> int | None:
    """The shorter side of a size in a preprocessor's config: a number, or sides by name."""
    if isinstance(size, dict):
        sides = [size[key] for key in ("shortest_edge", "height", "width") if isinstance(size.get(key), int)]
        return min(sides, default=None)
    return size if isinstance(size, int) else None


def example(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns keyword inputs: token ids `[2, tokens]` or float images `[2, channels, height, width]`; else None."""
    config: Any = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    generator = torch.Generator().manual_seed(0)
    if main == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        length = min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
        ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
        inputs = {"input_ids": ids}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids.clone()
        return (), inputs
    if main == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(config, "num_channels", 3)
        return (), {"pixel_values": torch.randn(2, channels, height, width, generator=generator)}
    return None


def save(model: nn.Module, folder: Path, name: str | None = None) -> None:
    """Writes config.json and the weights as safetensors, for `from_pretrained` of the class.

    Args:
        model: a model of the library.
        folder: an empty folder.
        name: the source that the model was built from, as for `locate`; None if the user's own code built it.
    """
    saving: Any = model
    if name is not None and hasattr(saving.config, "use_cache"):  # `locate` turned the cache off, for training
        _, values = read_config(Path(name))
        saving.config.use_cache = values.get("use_cache", type(saving.config)().use_cache)
    saving.save_pretrained(folder)
