"""Adapter for diffusers: models from a preset, a config.json or a checkpoint folder (`diffusers:dit_b`).

The presets are the DiT family (Peebles and Xie 2023, table 1) with patch size 2 on 32x32x4 latents, and the denoiser of
latent diffusion (Rombach et al. 2022) with the sizes of Stable Diffusion 1.5 on 64x64x4 latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from progc.errors import InputError, did_you_mean, one_line
from progc.models.arguments import checked
from progc.models.checkpoint import has_weights, read_config

if TYPE_CHECKING:
    from torch import nn

# layers, heads, head dim
_DIT = {"dit_s": (12, 6, 64), "dit_b": (12, 12, 64), "dit_l": (24, 16, 64), "dit_xl": (28, 16, 72)}
_UNETS: dict[str, dict[str, Any]] = {
    "sd_unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    }
}
_PRESETS = (*_DIT, *_UNETS)
_TOKENS = 8  # length of the example condition sequence; growth does not depend on it


def locate(name: str, args: Mapping[str, Any]) -> tuple[Callable[[], nn.Module], str | None]:
    """Returns a constructor of the model, and the folder of its weights if there are any.

    Args:
        name: a preset, or the path of a config.json or its folder.
        args: entries that replace those of the config.

    Raises:
        InputError: the name is not a preset, the config is not one of the installed diffusers, or the model has no such
            argument.
    """
    if name in _DIT and not Path(name).exists():
        layers, heads, head_dim = _DIT[name]
        sizes = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_dim, "out_channels": 8}
        return _constructor(name, diffusers.DiTTransformer2DModel, sizes, args), None
    if name in _UNETS and not Path(name).exists():
        return _constructor(name, diffusers.UNet2DConditionModel, _UNETS[name], args), None
    if not Path(name).exists():
        meant = did_you_mean(name, _PRESETS)
        raise InputError(
            f"diffusers has no preset `{name}`, and there is no such file{meant or ';'} expected a config.json, its "
            f"folder, or one of {', '.join(_PRESETS)}"
        )
    folder, config = read_config(Path(name), parts=("transformer", "unet"))
    label = config.get("_class_name")
    cls: Any = getattr(diffusers, str(label), None)
    is_model = isinstance(cls, type) and issubclass(cls, torch.nn.Module)
    if not is_model:
        raise InputError(
            f"diffusers:{name}: `_class_name` {label!r} is not a model of diffusers {diffusers.__version__}; "
            "fix config.json"
        )
    trained = str(folder) if has_weights(folder) else None
    return _constructor(name, cls, config, args, folder if trained else None), trained


def drop_path(name: str) -> tuple[str, ...]:
    """Returns arguments that may set the rate of drop-path: no model of diffusers has one."""
    return ()


def images(name: str, args: Mapping[str, Any]) -> None:
    """Returns None: denoisers take latents, which are not normalised."""
    return None


def _constructor(
    name: str, cls: Any, config: Mapping[str, Any], args: Mapping[str, Any], trained: Path | None = None
) -> Callable[[], nn.Module]:
    """Builds a model from its config with other entries, and from the weights of a folder if there are any."""
    checked(f"diffusers:{name}", args, list(inspect.signature(cls.__init__).parameters)[1:])

    def construct() -> nn.Module:
        try:
            if trained is not None:
                return cls.from_pretrained(trained, local_files_only=True, use_safetensors=True, **args)
            return cls.from_config({**config, **args})
        except Exception as error:
            raise InputError(f"diffusers:{name} cannot be built: {one_line(error, 300)}") from error

    return construct


def example(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns latents, timesteps and conditions of a denoiser, by the argument names of its forward; else None."""
    config: Any = getattr(model, "config", None)
    names = list(inspect.signature(model.forward).parameters)
    main = names[0]
    channels = getattr(config, "in_channels", None)
    size = getattr(config, "sample_size", None)
    if main not in ("sample", "hidden_states") or channels is None or (size is None and main == "hidden_states"):
        return None
    if getattr(config, "addition_embed_type", None) or getattr(config, "use_additional_conditions", None):
        return None
    generator = torch.Generator().manual_seed(0)
    height, width = size if isinstance(size, (list, tuple)) else (size or 32, size or 32)
    inputs: dict[str, Any] = {main: torch.randn(2, channels, height, width, generator=generator)}
    if "timestep" in names:
        inputs["timestep"] = torch.tensor([7, 421])
    condition = _first(config, "caption_channels", "joint_attention_dim", "cross_attention_dim")
    if "encoder_hidden_states" in names and isinstance(condition, int):
        inputs["encoder_hidden_states"] = torch.randn(2, _TOKENS, condition, generator=generator)
    if "pooled_projections" in names:
        inputs["pooled_projections"] = torch.randn(2, config.pooled_projection_dim, generator=generator)
    if "added_cond_kwargs" in names and hasattr(config, "use_additional_conditions"):
        inputs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    classes = _first(config, "num_class_embeds", "num_embeds_ada_norm")
    if "class_labels" in names and classes:
        inputs["class_labels"] = torch.randint(0, classes, (2,), generator=generator)
    return (), inputs


def _first(config: Any, *names: str) -> Any:
    return next((value for value in (getattr(config, name, None) for name in names) if value is not None), None)


def save(model: nn.Module, folder: Path, name: str | None = None) -> None:
    """Writes config.json and the weights as safetensors, for `from_pretrained` of the class.

    Args:
        model: a model of the library.
        folder: an empty folder.
        name: the source that the model was built from, as for `locate`; None if the user's own code built it.
    """
    saving: Any = model
    saving.save_pretrained(folder, safe_serialization=True)
