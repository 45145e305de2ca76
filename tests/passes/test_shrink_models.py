"""shrink on real models: the sub-network is what the library's own class of that size computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from progc.ir.program import Program
from progc.pipeline.manager import run
from tests import zoo
from tests.nets import EinsumTransformer, FlatMixer
from tests.sweeps import some
from tests.transforms.shrinking.small import captured, check_class, shrunk

STORAGES = ["share", "copy"]


def vision_transformer(depth: int, width: int, heads: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, depth=depth, embed_dim=width, num_heads=heads, num_classes=5, drop_path_rate=0.1
    )


def residual(*layers: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, layers, num_classes=5, channels=(64, 8, 8, 16))


def convolutional(*depths: int, width: int = 8) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=depths, dims=(width, 2 * width, 4 * width, 8 * width), num_classes=5)


def windowed(*depths: int, width: int = 16, heads: tuple[int, ...] = (2, 4, 8)) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=56, patch_size=2, window_size=7, embed_dim=width, depths=depths, num_heads=heads, num_classes=10
    )


def dense(*blocks: int) -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=4, block_config=blocks, num_init_features=8, num_classes=5)  # type: ignore[arg-type]


def diffusion(layers: int, heads: int) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=layers,
        sample_size=8, patch_size=2, num_embeds_ada_norm=20,
    )  # fmt: skip


def language(layers: int, width: int = 32, heads: int = 4) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_embd=width, n_layer=layers, n_head=heads, n_positions=16, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def tokens() -> Program:
    return captured(vision_transformer(4, 48, 4), zoo.image(32))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("depth=0.5", (2, 48, 4)),
        ("depth=3 rule=last", (3, 48, 4)),
        ("width=24 heads=2", (4, 24, 2)),
        ("depth=1 width=*0.25", (1, 12, 1)),
        ("depth=*0.75 width=*0.5 heads=4", (3, 24, 4)),
        ("width=36 units=leading rule=first depth=2", (2, 36, 3)),
    ],
)
def test_a_transformer(tokens: Program, text: str, sizes: tuple[int, int, int], storage: str) -> None:
    check_class(shrunk(tokens, f"{text} storage={storage}").program, vision_transformer(*sizes))


def test_settings_of_a_block_stay_its_own(tokens: Program) -> None:
    """Drop-path rates are those the block had; a class of that depth spaces them afresh."""
    result = shrunk(tokens, "depth=2")
    assert "blocks of blocks keep their own drop-path keep probability" in result.notes


def test_a_residual_network() -> None:
    """A factor for all chains leaves of each what growth finds again; a name or a number of blocks says what to do."""
    program = captured(residual(2, 4, 3, 2), zoo.image(32))
    half = shrunk(program, "depth=0.5")
    check_class(half.program, residual(1, 2, 2, 2))
    assert "layer3: depth 1.5 of 3 becomes 2: at least 2 blocks must stay" in half.notes
    assert "layer4: depth 1 of 2 becomes 2: at least 2 blocks must stay" in half.notes
    least = shrunk(program, "depth=1 storage=copy")
    check_class(least.program, residual(1, 1, 1, 1))
    assert [note.split()[4] for note in least.notes] == ["layer2", "layer3", "layer4"]
    assert all(note.endswith("again: too few of its blocks stay") for note in least.notes)


def test_a_convolutional_network_with_its_depth_of_one_stage_and_all_widths() -> None:
    program = captured(convolutional(1, 1, 3, 1), zoo.image(32))
    small = shrunk(program, "depth=stages.2.blocks:1 width=*0.5").program
    check_class(small, convolutional(1, 1, 1, 1, width=4))


def test_windows_alternate_so_whole_periods_go() -> None:
    program = captured(windowed(2, 4, 2), zoo.image(56))
    check_class(shrunk(program, "depth=layers.1.blocks:2").program, windowed(2, 2, 2))
    check_class(shrunk(program, "width=8 heads=1").program, windowed(2, 4, 2, width=8, heads=(1, 2, 4)))


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("depth=features.denseblock3*:2", (3, 4, 2)),
        ("depth=features.denseblock1*:2 axes=features.transition1.conv:8,features.transition2.conv:12", (2, 4, 3)),
    ],
)
def test_a_dense_chain_loses_its_last_segments(text: str, blocks: tuple[int, ...]) -> None:
    program = captured(dense(3, 4, 3), zoo.image(64))
    result = shrunk(program, text)
    check_class(result.program, dense(*blocks))
    assert any("because dense chains grow at their end" in note for note in result.notes)


def test_a_diffusion_transformer() -> None:
    keywords = {"timestep": torch.tensor([3, 11]), "class_labels": torch.tensor([1, 7])}
    program = captured(diffusion(4, 2), zoo.image(8, channels=4), **keywords)
    check_class(shrunk(program, "depth=0.5").program, diffusion(2, 2))
    check_class(shrunk(program, "depth=1 width=*0.5 storage=copy").program, diffusion(1, 1))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_language_model_keeps_its_tie(storage: str) -> None:
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(3))
    program = captured(language(3), input_ids=ids)
    small = shrunk(program, f"depth=2 width=16 heads=2 storage={storage}").program
    assert small.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert small.tensors["lm_head.weight"] is small.tensors["transformer.wte.weight"]
    check_class(small, language(2, 16, 2))


@pytest.mark.parametrize("storage", STORAGES)
def test_networks_of_ones_own(storage: str) -> None:
    _, packed = zoo.captured("own:einsum")
    small = shrunk(packed, f"depth=2 width=16 heads=2 mlp=20 storage={storage}").program
    check_class(small, EinsumTransformer(dim=16, heads=2, hidden=20, depth=2))
    _, flat = zoo.captured("own:flat")
    small = shrunk(flat, f"depth=0.5 width=*0.5 axes=w1_0:5,w1_1:9,w1_2:5,w1_3:9 mlp=10 storage={storage}").program
    assert small.tensors["w1_0"].shape == (5, 6) and small.tensors["w1_1"].shape == (5, 6)
    check_class(small, FlatMixer(6, 5, 2))


RUN = (
    "transformers:llama", "transformers:bert_mlm", "diffusers:unet", "timm:efficientnet_b0@64",
    "timm:mobilenetv3_small_100@64", "timm:mixer_s32_224",
)  # fmt: skip


@pytest.mark.parametrize("name", some(RUN, ["transformers:llama", "timm:mixer_s32_224"]))
def test_sub_networks_of_the_zoo_run_and_train(name: str) -> None:
    program = zoo.captured(name)[1]
    text = "width=*0.5" if name in ("diffusers:unet", "timm:mobilenetv3_small_100@64") else "depth=0.5 width=*0.5"
    small, _ = run(program, f"shrink{{{text}}}")
    assert small.num_parameters() < 0.4 * program.num_parameters()
    args, kwargs = small.example
    for training in (False, True):
        output = small.module().train(training)(*args, **kwargs)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        assert all(bool(torch.isfinite(leaf).all()) for leaf in leaves)
