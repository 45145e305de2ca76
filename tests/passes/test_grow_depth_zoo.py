"""Depth growth of real networks: lossless, and loads into the class of that depth."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests import nets, zoo
from tests.passes.deepened import check_alive, check_lossless, grown


def _class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _class("timm", "create_model")(name, **options)


def _resnet(block: str, channels: tuple[int, ...], *layers: int) -> Callable[[], nn.Module]:
    kind = "timm.models.resnet"
    return lambda: _class(kind, "ResNet")(_class(kind, block), layers, channels=channels)


def _transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _class("transformers", model)(_class("transformers", config)(use_cache=False, **options))


DOUBLED: dict[str, Callable[[], nn.Module] | None] = {
    "timm:vit_tiny_patch16_224@64": _timm("vit_tiny_patch16_224", **{**zoo.VIT, "depth": 8}),
    "timm:resnet18@64": _resnet("BasicBlock", zoo.RESNET18, 4, 4, 4, 4),
    "timm:resnet50@64": _resnet("Bottleneck", zoo.RESNET50, 6, 8, 12, 6),
    "timm:swin@56": lambda: _class("timm.models.swin_transformer", "SwinTransformer")(
        img_size=56, patch_size=2, window_size=7, embed_dim=16, depths=(4, 8, 4), num_heads=(2, 4, 8), num_classes=10
    ),
    "timm:convnext_atto@64": _timm("convnext_atto", depths=(4, 4, 12, 4), dims=zoo.CONVNEXT),
    "timm:densenet121@64": None,
    "timm:mobilenetv3_small_100@64": None,
    "timm:efficientnet_b0@64": None,
    "timm:mixer_s32_224": lambda: _class("timm.models.mlp_mixer", "MlpMixer")(
        **{**zoo.MIXER, "num_blocks": 8}
    ),
    "torchvision:vit": lambda: _class("torchvision.models.vision_transformer", "VisionTransformer")(
        image_size=32, patch_size=8, num_layers=6, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    ),
    "diffusers:dit": lambda: _class("diffusers", "DiTTransformer2DModel")(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        patch_size=2, num_embeds_ada_norm=20,
    ),
    "diffusers:unet": lambda: _class("diffusers", "UNet2DConditionModel")(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), transformer_layers_per_block=2,
    ),
    "transformers:bert": _transformers("BertModel", "BertConfig", **{**zoo._BERT, "num_hidden_layers": 6}),
    "transformers:bert_mlm": _transformers("BertForMaskedLM", "BertConfig", **{**zoo._BERT, "num_hidden_layers": 6}),
    "transformers:gpt2": _transformers("GPT2LMHeadModel", "GPT2Config", **{**zoo._GPT2, "n_layer": 6}),
    "transformers:llama": _transformers("LlamaForCausalLM", "LlamaConfig", **{**zoo._LLAMA, "num_hidden_layers": 6}),
    "own:einsum": lambda: nets.EinsumTransformer(depth=6),
    "own:flat": lambda: nets.FlatMixer(depth=8),
}  # fmt: skip


@pytest.mark.slow  # tests/growth/test_grow.py grows them in depth and width for each commit
@pytest.mark.parametrize("name", DOUBLED)
def test_zoo_doubled(name: str) -> None:
    module, program = zoo.captured(name)
    result = grown(program)
    assert result.changed
    check_lossless(program, result)
    build = DOUBLED[name]
    if build is not None:
        reference = build().eval()
        reference.load_state_dict(result.program.state_dict(), strict=True)
        args, kwargs = program.example
        with torch.no_grad():
            pairs = zip(*(pytree.tree_leaves(net(*args, **kwargs)) for net in (module.eval(), reference)), strict=True)
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs if isinstance(a, Tensor))


@pytest.mark.parametrize(
    "name",
    [
        "own:flat",
        "diffusers:dit",
        *(
            pytest.param(name, marks=pytest.mark.slow)  # tests/passes/test_grow_depth.py has small ones of their kinds
            for name in ("timm:swin@56", "timm:densenet121@64", "transformers:bert", "transformers:llama")
        ),
    ],
)
def test_zoo_trains_by_the_second_step(name: str) -> None:
    check_alive(grown(zoo.captured(name)[1]))
