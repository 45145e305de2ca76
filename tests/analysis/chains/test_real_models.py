"""Chain tables of real networks, stated in full: any chain that is not listed here is a false one."""

from __future__ import annotations

import pytest

from progc.analysis.chains import Chain
from progc.ir.program import MODES
from tests import zoo
from tests.sweeps import some

# Per network: chain name, kind, period, numbers of its blocks, siblings.
EXPECTED: dict[str, list[tuple[str, str, int, list[int], int]]] = {
    "timm:vit_tiny_patch16_224@64": [("blocks", "residual", 1, list(range(4)), 4)],
    "timm:swin@56": [
        ("layers.0.blocks", "residual", 2, [0, 1], 2),
        ("layers.1.blocks", "residual", 2, [0, 1, 2, 3], 4),
        ("layers.2.blocks", "residual", 1, [0, 1], 2),
    ],
    "timm:resnet18@64": [
        ("layer1", "residual", 1, [0, 1], 2),
        ("layer2", "residual", 1, [1], 2),
        ("layer3", "residual", 1, [1], 2),
        ("layer4", "residual", 1, [1], 2),
    ],
    "timm:resnet50@64": [
        ("layer1", "residual", 1, [1, 2], 3),
        ("layer2", "residual", 1, [1, 2, 3], 4),
        ("layer3", "residual", 1, [1, 2, 3, 4, 5], 6),
        ("layer4", "residual", 1, [1, 2], 3),
    ],
    "timm:convnext_atto@64": [
        ("stages.0.blocks", "residual", 1, [0, 1], 2),
        ("stages.1.blocks", "residual", 1, [0, 1], 2),
        ("stages.2.blocks", "residual", 1, [0, 1, 2, 3, 4, 5], 6),
        ("stages.3.blocks", "residual", 1, [0, 1], 2),
    ],
    "timm:mobilenetv3_small_100@64": [
        ("blocks.1", "residual", 1, [1], 2),
        ("blocks.2", "residual", 1, [1, 2], 3),
        ("blocks.3", "residual", 1, [1], 2),
        ("blocks.4", "residual", 1, [1, 2], 3),
    ],
    "timm:efficientnet_b0@64": [
        ("blocks.1", "residual", 1, [1], 2),
        ("blocks.2", "residual", 1, [1], 2),
        ("blocks.3", "residual", 1, [1, 2], 3),
        ("blocks.4", "residual", 1, [1, 2], 3),
        ("blocks.5", "residual", 1, [1, 2, 3], 4),
    ],
    "timm:mixer_s32_224": [("blocks", "residual", 1, list(range(4)), 4)],
    "timm:densenet121@64": [
        ("features.denseblock1.denselayer#", "dense", 1, list(range(1, 3)), 2),
        ("features.denseblock2.denselayer#", "dense", 1, list(range(1, 4)), 3),
        ("features.denseblock3.denselayer#", "dense", 1, list(range(1, 5)), 4),
        ("features.denseblock4.denselayer#", "dense", 1, list(range(1, 4)), 3),
    ],
    "torchvision:vit": [("encoder.layers.encoder_layer_#", "residual", 1, [0, 1, 2], 3)],
    "diffusers:dit": [("transformer_blocks", "residual", 1, [0, 1], 2)],
    "diffusers:unet": [
        (f"{place}.transformer_blocks", "residual", 1, [0], 1)
        for place in (
            "down_blocks.0.attentions.0",
            "down_blocks.0.attentions.1",
            "mid_block.attentions.0",
            "up_blocks.1.attentions.0",
            "up_blocks.1.attentions.1",
            "up_blocks.1.attentions.2",
        )
    ],
    "transformers:bert": [("encoder.layer", "residual", 1, [0, 1, 2], 3)],
    "transformers:gpt2": [("transformer.h", "residual", 1, [0, 1, 2], 3)],
    "transformers:llama": [("model.layers", "residual", 1, [0, 1, 2], 3)],
}

# A stage that begins with a block of another width or stride says so.
STRIDED = {
    "timm:resnet18@64": ["layer2.0", "layer3.0", "layer4.0"],
    "timm:resnet50@64": ["layer1.0", "layer2.0", "layer3.0", "layer4.0"],
    "timm:mobilenetv3_small_100@64": ["blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.4.0"],
    "timm:efficientnet_b0@64": ["blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.4.0", "blocks.5.0"],
}


def row(chain: Chain) -> tuple[str, str, int, list[int], int]:
    return chain.name, chain.kind, chain.period, [block.index for block in chain.blocks], chain.siblings


QUICK = (
    "timm:vit_tiny_patch16_224@64", "timm:resnet18@64", "timm:convnext_atto@64", "timm:densenet121@64",
    "timm:mixer_s32_224", "torchvision:vit", "diffusers:dit", "transformers:gpt2", "transformers:llama",
)  # fmt: skip


@pytest.mark.parametrize("name", some(EXPECTED, QUICK))
def test_table(name: str) -> None:
    table = zoo.captured(name)[1].chains
    assert [row(chain) for chain in table] == EXPECTED[name]
    strided = [refused.name for refused in table.refused if refused.reason.startswith("changes width or stride")]
    assert strided == STRIDED.get(name, [])


@pytest.mark.parametrize("name", some(EXPECTED, QUICK))
def test_blocks_are_consistent_with_the_program(name: str) -> None:
    program = zoo.captured(name)[1]
    for chain in program.chains:
        for mode in MODES:
            nodes = {node.name: node for node in program.graphs[mode].nodes}
            boundaries = chain.carried[mode]
            assert len(boundaries) == len(chain.blocks) + 1
            for block in chain.blocks:
                assert set(block.nodes[mode]) <= set(nodes)
                for tensor, pattern in zip(block.tensors, block.patterns, strict=True):
                    assert tensor in program.tensors
                    assert pattern.replace("#", str(block.index)) == tensor
                    assert pattern.startswith(chain.pattern)
            if chain.kind == "residual":
                metas = [[nodes[value].meta["tensor"] for value in boundary] for boundary in boundaries]
                assert all(meta == metas[0] for meta in metas)
                for block, boundary in zip(chain.blocks, boundaries[1:], strict=True):
                    assert set(boundary) <= set(block.nodes[mode])


def test_unet_resnets_are_refused_for_their_skips() -> None:
    table = zoo.captured("diffusers:unet")[1].chains
    reasons = {refused.name: refused.reason for refused in table.refused}
    assert "also read by `up_blocks.0`" in reasons["down_blocks.1.resnets.1"]
    assert "down_blocks.0.resnets.1" in reasons


def test_swin_states_its_shift() -> None:
    chain = zoo.captured("timm:swin@56")[1].chains["layers.1.blocks"]
    assert "window shift: 0, 3, 0, 3" in chain.differences
    assert "attn_mask: only in 1, 3" in chain.differences


def test_dense_chain_lists_its_concatenations() -> None:
    program = zoo.captured("timm:densenet121@64")[1]
    chain = program.chains["features.denseblock1.denselayer#"]
    for mode in MODES:
        nodes = {node.name: node for node in program.graphs[mode].nodes}
        assert len(chain.cats[mode]) == len(chain.blocks) + 1
        for cat, values in zip(chain.cats[mode], chain.carried[mode], strict=True):
            assert [arg.name for arg in nodes[cat].all_input_nodes] == list(values)
        assert [len(values) for values in chain.carried[mode]] == list(range(1, 4))


def test_conditioning_and_tables_are_shared_values() -> None:
    table = zoo.captured("transformers:llama")[1].chains
    assert len(table["model.layers"].shared["eval"]) >= 2  # cos and sin of the rotary embedding
    assert len(table["model.layers"].carried["eval"][0]) == 1
