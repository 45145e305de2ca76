"""Real networks at a width that is no multiple: the grown weights load into the class of that size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.growth.grow import Growth, grow_with_report
from progc.passes.grow_width import GrowWidth
from tests.grown import EXACT, assert_loads, train_gap
from tests.sweeps import some
from tests.zoo import captured, image, perturb


def vit(width: int, heads: int, **options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=width, num_heads=heads, depth=2, num_classes=5, **options
    )


def deit(width: int, heads: int) -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=16, patch_size=8, embed_dim=width, num_heads=heads, depth=2, num_classes=5
    )


def beit(width: int, heads: int) -> nn.Module:
    from timm.models.beit import Beit

    return Beit(
        img_size=16, patch_size=8, embed_dim=width, num_heads=heads, depth=2, num_classes=5, init_values=0.5,
        use_rel_pos_bias=True,
    )  # fmt: skip


def cait(width: int, heads: int) -> nn.Module:
    from timm.models.cait import Cait

    return Cait(
        img_size=16, patch_size=8, embed_dim=width, num_heads=heads, depth=2, depth_token_only=1, num_classes=5,
        init_values=0.5,
    )  # fmt: skip


def gpt2(width: int, heads: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20,
            n_embd=width,
            n_layer=2,
            n_head=heads,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )  # fmt: skip
    )


def llama(width: int, heads: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            intermediate_size=width * 3 // 2,
            max_position_embeddings=16,
            use_cache=False,
        )  # fmt: skip
    )


IMAGE: Mapping[str, Any] = {"x": image(16).double()}
TEXT: Mapping[str, Any] = {"input_ids": torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(3))}
QUICK = ("vit 96 to 160", "class attention", "tied head", "rms norm and grouped queries")
CASES: dict[str, tuple[Callable[..., nn.Module], tuple[int, int], tuple[int, int], Mapping[str, Any]]] = {
    "vit 96 to 160": (vit, (96, 3), (160, 5), IMAGE),
    "vit 192 to 256": (vit, (192, 3), (256, 4), IMAGE),
    "vit with average pooling and layer scale": (
        lambda *sizes: vit(*sizes, class_token=False, global_pool="avg", init_values=0.5), (24, 3), (40, 5), IMAGE,
    ),
    "distillation token": (deit, (24, 3), (40, 5), IMAGE),
    "layer scale and relative positions": (beit, (24, 3), (40, 5), IMAGE),
    "class attention": (cait, (24, 3), (40, 5), IMAGE),
    "tied head": (gpt2, (32, 4), (48, 6), TEXT),
    "rms norm and grouped queries": (llama, (32, 4), (48, 6), TEXT),
}  # fmt: skip


@pytest.mark.parametrize("name", some(CASES, QUICK))
def test_a_class_of_another_width_takes_the_weights(name: str) -> None:
    build, small, large, inputs = CASES[name]
    module = perturb(build(*small)).double().eval()
    program = progc.capture(module, (), dict(inputs))
    target = progc.capture(build(*large).double(), (), dict(inputs))
    growth: Growth = grow_with_report(program, target)
    assert growth.plan.lossless and growth.report["max_rel_diff"] < EXACT
    assert {axis.kind for axis in growth.plan.axes} >= {"pad"}
    assert_loads(build(*large).double(), growth.program.state_dict(), module, (), dict(inputs))
    trained = train_gap(program, growth)
    assert trained is None or trained < EXACT


REFUSED = {
    "transformers:bert_mlm": r"32 to 48 is not an integer factor, .* writes into it, and after its gain and shift",
    "timm:swin@56": r"16 to 24 .* aten\.layer_norm\.default \(layer_norm in patch_embed\.norm\) writes into it",
    "diffusers:dit": r"32 to 48 .* aten\.mul\.Tensor \(\S+ in transformer_blocks\.\d+\) multiplies two values",
    "timm:convnext_atto@64": r"8 to 12 .* aten\.conv2d\.default \(\S+ in \S+conv_dw\) has separate weights for",
    "timm:mixer_s32_224": r"32 to 48 .* aten\.gelu\.default \(gelu in blocks\.0\.mlp_tokens\.act\) of a mean is",
    "diffusers:unet": r"aten\.group_norm at \S+ groups channels across two parts of a concatenation; all",
    "own:flat": r"12 to 18 .* aten\.conv2d\.default \(\S+\) has separate weights for every unit",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_padded_is_refused_with_the_operation(name: str) -> None:
    with pytest.raises(progc.errors.NotLosslessError, match=REFUSED[name]) as caught:
        GrowWidth(width="*1.5").run(captured(name)[1])
    assert re.search("the nearest exact sizes are|same integer factor", str(caught.value)) and "\n" not in str(
        caught.value
    )
