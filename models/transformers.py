"""Adapter for transformers: models from a config.json or a checkpoint folder (`transformers:./my-bert`).

The class is the first entry of `architectures` in the config, or else the base model of its `model_type`. Models are
built without a key-value cache, which training does not use. Nothing is downloaded, no code from the folder runs, and
pickled weights are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from progc.errors import InputError, did_you_mean, one_line
from progc.models.checkpoint import has_weights, read_config

if TYPE_CHECKING:
    from torch import nn

_TOKENS = 16  # length of the example sequence; growth does not depend on it


def locate(name: str) -> tuple[Callable[[], nn.Module], str | None]:
    """Returns a constructor of the model, and the folder of its weights if there are any.

    Raises:
        InputError: the config does not exist, or its model is not in the installed transformers.
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
    except Exception as error:  # each config class raises different exceptions
        raise InputError(f"transformers:{name}: config.json is not valid: {one_line(error, 300)}") from error
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
