"""The models of the coverage sweep: what they are called, how they are built, and with what inputs.

Every family module of timm (its smallest variant), every classifier, segmentation and video model of torchvision, small
configurations of diffusers and transformers. Images are made small where a model takes small ones, to save time.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.timm_families import SMALLEST
from tests import zoo

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

_IMAGE_ARGUMENT = (64, 112, 128)
"""Sizes that a model with an `img_size` argument is built for, the first that works."""
_IMAGE = (64, 96, 128, 192)
"""Sizes that a fully convolutional model is called with, the first that works."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One row of the table: `build()` gives the module with example inputs."""

    library: str
    family: str
    name: str
    build: Callable[[], Built]

    @property
    def key(self) -> str:
        return f"{self.library}:{self.name}"


def specs() -> list[Spec]:
    """All rows, in the order of the table."""
    return [*_timm_specs(), *_torchvision_specs(), *_diffusers_specs(), *_transformers_specs()]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# -- timm -----------------------------------------------------------------------------------------------


def smallest_timm(module: str) -> str:
    """Name of the variant with the fewest parameters that the family's module registers."""
    import timm

    found = []
    for name in timm.list_models(module=module):
        if name.startswith("test_"):
            continue
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # a variant that cannot be built without data
            continue
        found.append((sum(parameter.numel() for parameter in model.parameters()), name))
    return min(found)[1]


def _timm_specs() -> list[Spec]:
    import timm

    return [
        Spec("timm", module, name := SMALLEST.get(module) or smallest_timm(module), lambda name=name: _timm(name))
        for module in sorted(timm.list_modules())
    ]


def _timm(name: str) -> Built:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    channels, native, _ = config.input_size if config is not None else (3, 224, 224)
    # Without a head the width would be the network's output, which nothing may change.
    head = {"num_classes": 10} if config is not None and not config.num_classes else {}
    for size in _IMAGE_ARGUMENT:
        try:
            return _called(timm.create_model(name, img_size=size, **head), channels, size)
        except Exception:  # no such argument, or a size that its windows or strides forbid
            continue
    model = timm.create_model(name, **head)
    return _smallest_image(model, channels, native)


def _called(model: nn.Module, channels: int, size: int) -> Built:
    """The model with images of that size, if it takes them in both modes; statistics are left alone."""
    x = images(2, channels, size, size)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for training in (True, False):
            model.train(training)(x)
    model.load_state_dict(state)
    return model, (x,), {}


def _smallest_image(model: nn.Module, channels: int, native: int) -> Built:
    for size in _IMAGE:
        if size < native:
            try:
                return _called(model, channels, size)
            except Exception:  # positions or windows of one size
                continue
    return model, (images(2, channels, native, native),), {}


# -- torchvision ----------------------------------------------------------------------------------------


def _torchvision_specs() -> list[Spec]:
    import torchvision.models as library

    rows = []
    for kind, module in (
        ("classification", library),
        ("segmentation", library.segmentation),
        ("video", library.video),
    ):
        for name in library.list_models(module=module):
            rows.append(Spec("torchvision", kind, name, lambda name=name, kind=kind: _torchvision(name, kind)))
    return rows


def _torchvision(name: str, kind: str) -> Built:
    import torchvision.models as library

    if kind == "video":
        return _video(library.get_model(name, weights=None))
    model = library.get_model(name, weights=None, **({"weights_backbone": None} if kind == "segmentation" else {}))
    native = int(getattr(model, "image_size", 299 if "inception" in name else 224))
    return _smallest_image(model, 3, native)


def _video(model: nn.Module) -> Built:
    for frames, size in ((8, 64), (16, 112), (16, 224)):
        x = images(2, 3, frames, size, size)
        try:
            with torch.no_grad():
                model.eval()(x[:1])
        except Exception:  # positions of one size
            continue
        return model, (x,), {}
    raise RuntimeError("takes none of the known clip sizes")


# -- diffusers ------------------------------------------------------------------------------------------


def _unet() -> Built:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, (images(2, 3, 16, 16),), {"timestep": torch.tensor([3, 11])}


def _sd3() -> Built:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=40, out_channels=4,
    )  # fmt: skip
    inputs = {
        "encoder_hidden_states": images(2, 5, 24),
        "pooled_projections": images(2, 40),
        "timestep": torch.tensor([3, 11]),
    }
    return model, (images(2, 4, 16, 16),), inputs


def _flux() -> Built:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=40, axes_dims_rope=(4, 6, 6), guidance_embeds=False,
    )  # fmt: skip
    inputs = {
        "encoder_hidden_states": images(2, 5, 24),
        "pooled_projections": images(2, 40),
        "timestep": torch.tensor([0.3, 0.7]),
        "img_ids": torch.arange(48).reshape(16, 3) % 7,
        "txt_ids": torch.zeros(5, 3),
    }
    return model, (images(2, 16, 16),), inputs


def _pixart() -> Built:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=32, caption_channels=24, use_additional_conditions=False,
    )  # fmt: skip
    inputs = {
        "encoder_hidden_states": images(2, 5, 24),
        "timestep": torch.tensor([3, 11]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, (images(2, 4, 8, 8),), inputs


def _sana() -> Built:
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=24,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    inputs = {"encoder_hidden_states": images(2, 5, 24), "timestep": torch.tensor([3, 11])}
    return model, (images(2, 4, 8, 8),), inputs


def _autoencoder() -> Built:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, sample_size=16, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return model, (images(2, 3, 16, 16),), {}


def _controlnet() -> Built:
    from diffusers import ControlNetModel

    model = ControlNetModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip
    inputs = {
        "timestep": torch.tensor([3, 11]),
        "encoder_hidden_states": images(2, 5, 32),
        "controlnet_cond": images(2, 3, 32, 32),
    }
    return model, (images(2, 4, 16, 16),), inputs


_DIFFUSERS: dict[str, Callable[[], Built]] = {
    "UNet2DConditionModel": lambda: zoo.construct("diffusers:unet"),
    "UNet2DModel": _unet,
    "DiTTransformer2DModel": lambda: zoo.construct("diffusers:dit"),
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
    "AutoencoderKL": _autoencoder,
    "ControlNetModel": _controlnet,
}


def _diffusers_specs() -> list[Spec]:
    return [Spec("diffusers", name, name, build) for name, build in _DIFFUSERS.items()]


# -- transformers ---------------------------------------------------------------------------------------

_TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {"intermediate_size": 48, "max_position_embeddings": 16}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("BertConfig", {**_TEXT, **_WIDE}),
    "RobertaForMaskedLM": ("RobertaConfig", {**_TEXT, **_WIDE}),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "eos_token_id": 0},
    ),
    "OPTForCausalLM": (
        "OPTConfig",
        {**_TEXT, "ffn_dim": 48, "max_position_embeddings": 16, "word_embed_proj_dim": 32},
    ),
    "LlamaForCausalLM": ("LlamaConfig", {**_TEXT, **_WIDE, **_GROUPED}),
    "Qwen3ForCausalLM": ("Qwen3Config", {**_TEXT, **_WIDE, **_GROUPED}),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**_TEXT, **_WIDE, **_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 3},
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "ViTForImageClassification": ("ViTConfig", _VISION),
    "Dinov2ForImageClassification": (
        "Dinov2Config",
        {key: value for key, value in _VISION.items() if key != "intermediate_size"},
    ),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {**_VISION, "projection_dim": 24}),
}


def _transformers_specs() -> list[Spec]:
    return [
        Spec("transformers", name, name, lambda name=name, config=config, options=options: _text(name, config, options))
        for name, (config, options) in _TRANSFORMERS.items()
    ]


def _text(name: str, config: str, options: dict[str, Any]) -> Built:
    import transformers

    made = getattr(transformers, config)(**options)
    if hasattr(made, "use_cache"):
        made.use_cache = False
    model = getattr(transformers, name)(made)
    names = inspect.signature(model.forward).parameters
    if "pixel_values" in names:
        return model, (), {"pixel_values": images(2, 3, 32, 32)}
    inputs = {"input_ids": torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(3))}
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = inputs["input_ids"].flip(1)
    return model, (), inputs


if __name__ == "__main__":
    import timm

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for family in sorted(timm.list_modules()):
        print(f'    "{family}": "{smallest_timm(family)}",', flush=True)
