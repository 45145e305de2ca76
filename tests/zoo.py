"""Small instances of real networks, perturbed away from their initial values and captured once per process.

They have the classes, operations and names of the published networks and fewer, narrower blocks: the analysis takes as
long for a node of a narrow network, but growing, comparing and copying its weights takes a twentieth of the time.

`captured(name)` gives `(module, program)`; both are shared by every test of the process, so change
neither. Zeros and ones of a fresh network hide errors: every float parameter gets seeded noise and
BatchNorm statistics become arbitrary with positive variance.
"""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import progc
from progc.ir.program import Program
from tests import nets
from tests.sweeps import some

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def image(size: int, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def _timm(name: str, size: int, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import timm

        return timm.create_model(name, **options), (image(size),), {}

    return build


def _swin() -> Built:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=56, patch_size=2, window_size=7, embed_dim=16, depths=(2, 4, 2), num_heads=(2, 4, 8), num_classes=10
    )
    return model, (image(56),), {}


def _mixer() -> Built:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(**MIXER), (image(64),), {}


def _torchvision_vit() -> Built:
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )
    return model, (image(32),), {}


def _dit() -> Built:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=20,
    )  # fmt: skip
    keywords = {"timestep": torch.tensor([3, 11]), "class_labels": torch.tensor([1, 7])}
    return model, (image(8, channels=4),), keywords


def _unet() -> Built:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    return model, (image(16, channels=4),), {"timestep": torch.tensor([3, 11]), "encoder_hidden_states": states}


def _transformers(config: str, model: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        library = importlib.import_module("transformers")
        network = getattr(library, model)(getattr(library, config)(use_cache=False, **options))
        ids = torch.randint(0, options["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(3))
        return network, (), {"input_ids": ids}

    return build


_BERT = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 16,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 50,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LLAMA = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 16,
}  # fmt: skip


def _own(kind: type[nn.Module], *args: Any) -> Callable[[], Built]:
    return lambda: (kind(), args, {})


VIT = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
RESNET18 = (64, 72, 80, 96)  # the stem has 64 channels
RESNET50 = (24, 32, 40, 48)
CONVNEXT = (8, 16, 24, 32)
MIXER: dict[str, Any] = {"img_size": 64, "patch_size": 16, "num_blocks": 4, "embed_dim": 32, "num_classes": 10}

_ZOO: dict[str, Callable[[], Built]] = {
    "timm:vit_tiny_patch16_224@64": _timm("vit_tiny_patch16_224", 64, **VIT),
    "timm:deit_tiny_patch16_224@64": _timm("deit_tiny_patch16_224", 64, **{**VIT, "depth": 12}),
    "timm:resnet18@64": _timm("resnet18", 64, channels=RESNET18),
    "timm:resnet50@64": _timm("resnet50", 64, channels=RESNET50),
    "timm:swin@56": _swin,
    "timm:convnext_atto@64": _timm("convnext_atto", 64, dims=CONVNEXT),
    "timm:densenet121@64": _timm("densenet121", 64, block_config=(2, 3, 4, 3)),
    "timm:mobilenetv3_small_100@64": _timm("mobilenetv3_small_100", 64),
    "timm:efficientnet_b0@64": _timm("efficientnet_b0", 64),
    "timm:mixer_s32_224": _mixer,
    "torchvision:vit": _torchvision_vit,
    "diffusers:dit": _dit,
    "diffusers:unet": _unet,
    "transformers:bert": _transformers("BertConfig", "BertModel", **_BERT),
    "transformers:bert_mlm": _transformers("BertConfig", "BertForMaskedLM", **_BERT),
    "transformers:gpt2": _transformers("GPT2Config", "GPT2LMHeadModel", **_GPT2),
    "transformers:llama": _transformers("LlamaConfig", "LlamaForCausalLM", **_LLAMA),
    "own:einsum": _own(nets.EinsumTransformer, torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(4))),
    "own:flat": _own(nets.FlatMixer, image(16)),
    "own:conv": _own(nets.ConvNet, image(16)),
    "own:image": _own(nets.ImageTransformer, image(32)),
    "own:conditional": _own(
        nets.ConditionalTransformer, image(32), torch.randn(2, 5, generator=torch.Generator().manual_seed(5))
    ),
    "own:dropping": _own(nets.DroppingNet, torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(6))),
    "own:tied": _own(nets.TiedWeights, torch.tensor([[1, 2, 3], [4, 0, 10]])),
}

NAMES = tuple(_ZOO)

ALIKE = {"timm:deit_tiny_patch16_224@64", "timm:efficientnet_b0@64", "timm:resnet50@64", "transformers:bert"}
"""Networks that have the operations of another one here, or a part of them: sweeps run them in `make test-all`."""


CORE = ("transformers:gpt2", "timm:resnet18@64", "own:einsum")
"""For sweeps of which every network takes seconds: a language model, a convolutional network, a packed transformer."""


def swept(names: Iterable[str]) -> list[Any]:
    """Names for `pytest.mark.parametrize`; those in `ALIKE` are slow."""
    names = list(names)
    return some(names, [name for name in names if name not in ALIKE])


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every float parameter and BatchNorm statistic away from its initial value, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * max(0.1 * spread, 0.05 if parameter.dim() < 2 else 0.01))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                module.running_mean.add_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.mul_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def construct(name: str) -> Built:
    """A fresh module as its class initialises it, with example `args` and `kwargs`."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        torch.manual_seed(0)
        return _ZOO[name]()


def build(name: str) -> Built:
    """As `construct`, perturbed and in eval mode."""
    model, args, kwargs = construct(name)
    return perturb(model).eval(), args, kwargs


@functools.cache
def captured(name: str) -> tuple[nn.Module, Program]:
    """The module and its program, built and captured once per process; both are shared, change neither.

    `NAME|PIPELINE` is the program after these passes, captured in float64, where sums with a row are not rounded.
    """
    name, _, pipeline = name.partition("|")
    model, args, kwargs = build(name)
    if pipeline:
        model = model.double()
        args, kwargs = pytree.tree_map(lambda x: x.double() if torch.is_floating_point(x) else x, (args, kwargs))
    program = progc.capture(model, args, kwargs)
    return model, progc.apply(program, pipeline).replace(history=()) if pipeline else program
