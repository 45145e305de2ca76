"""Kinds of parameters are found by what operations do with them."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.ir.program import Program
from progc.transforms.freezing.blocks import Blocks
from progc.transforms.freezing.kinds import KINDS, Kinds
from tests.transforms.freezing.networks import diffuser
from tests.zoo import captured


def parts(program: Program) -> dict[str, set[str]]:
    """Kind to names with block numbers left out."""
    found = Kinds(program, Blocks(program)).found
    assert tuple(found) == KINDS
    return {kind: {re.sub(r"\d+", "#", name) for name in names} for kind, names in found.items()}


def both(*modules: str) -> set[str]:
    return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def test_conditioned_blocks() -> None:
    kinds = parts(diffuser())
    assert kinds["modulation"] == both("blocks.#.modulate", "last_modulate")
    assert kinds["attention"] == both("blocks.#.qkv", "blocks.#.out")
    assert kinds["mlp"] == both(
        "blocks.#.up", "blocks.#.down"
    )  # the embedding of the time is one too, beside the stream
    assert kinds["norms"] == set()
    assert kinds["embeddings"] == both("patches", "time.#") | {"positions", "labels.weight"}
    assert kinds["head"] == both("last_modulate", "last")


def test_a_real_diffusion_transformer() -> None:
    kinds = parts(captured("diffusers:dit")[1])
    assert kinds["modulation"] == both("transformer_blocks.#.norm#.linear", "proj_out_#") - both("proj_out_2")
    assert kinds["attention"] == both(
        *(f"transformer_blocks.#.attn#.{part}" for part in ("to_q", "to_k", "to_v", "to_out.#"))
    )
    assert kinds["mlp"] == both("transformer_blocks.#.ff.net.#.proj", "transformer_blocks.#.ff.net.#")


def test_a_vision_transformer_of_a_library() -> None:
    kinds = parts(captured("torchvision:vit")[1])
    layer = "encoder.layers.encoder_layer_#"
    assert kinds["attention"] == {
        f"{layer}.self_attention.in_proj_weight", f"{layer}.self_attention.in_proj_bias",
        *both(f"{layer}.self_attention.out_proj"),
    }  # fmt: skip
    assert kinds["mlp"] == both(f"{layer}.mlp.#")
    assert kinds["norms"] == both(f"{layer}.ln_#", "encoder.ln")
    assert kinds["embeddings"] == both("conv_proj") | {"class_token", "encoder.pos_embedding"}
    assert kinds["head"] == both("heads.head", "encoder.ln")
    assert kinds["modulation"] == set()


def test_attention_by_einsum_and_norms_that_are_spelled_out() -> None:
    kinds = parts(captured("own:einsum")[1])
    assert kinds["attention"] == {"layers.#.attention.qkv", "layers.#.attention.out"}
    assert kinds["mlp"] == {"layers.#.up.weight", "layers.#.down.weight"}
    assert kinds["norms"] == {"layers.#.before_attention.gain", "layers.#.before_mlp.gain", "final.gain"}
    assert kinds["biases"] == {"embed.bias", "head.bias"}


def test_rotary_positions_and_shared_heads() -> None:
    kinds = parts(captured("transformers:llama")[1])
    assert kinds["attention"] == {f"model.layers.#.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert kinds["mlp"] == {f"model.layers.#.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_post_norm_text_model() -> None:
    kinds = parts(captured("transformers:bert")[1])
    layer = "encoder.layer.#"
    assert kinds["attention"] == both(
        *(f"{layer}.attention.self.{part}" for part in ("query", "key", "value")), f"{layer}.attention.output.dense"
    )
    assert kinds["mlp"] == both(f"{layer}.intermediate.dense", f"{layer}.output.dense")
    assert kinds["norms"] == both(
        f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm", "embeddings.LayerNorm"
    )
    assert kinds["embeddings"] == {
        f"embeddings.{what}_embeddings.weight" for what in ("word", "position", "token_type")
    }
    assert kinds["head"] == both("pooler.dense")


def test_a_convolutional_network() -> None:
    program = captured("timm:resnet18@64")[1]
    kinds = Kinds(program, Blocks(program)).found
    assert kinds["convolutions"] == {name for name, tensor in program.parameters() if tensor.dim() == 4}
    norms = {name for name, tensor in program.parameters() if tensor.dim() == 1 and not name.startswith("fc")}
    assert kinds["norms"] == norms
    assert kinds["biases"] == {name for name in norms if name.endswith("bias")} | {"fc.bias"}
    assert kinds["head"] == {"fc.weight", "fc.bias"} and kinds["attention"] == kinds["mlp"] == frozenset()


def test_a_convolutional_network_that_is_told_the_time() -> None:
    """Shifts alone, in blocks of no chain too: every residual block has a projection of the time."""
    program = captured("diffusers:unet")[1]
    told = {name for name, _ in program.parameters() if ".time_emb_proj." in name}
    assert len(told) == 2 * 12 and Kinds(program, Blocks(program)).found["modulation"] == told


class Excited(nn.Module):
    """Residual blocks that gate their own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, padding=1), "down": nn.Linear(8, 2), "up": nn.Linear(2, 8)})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block["conv"](x)
            gate = block["up"](F.relu(block["down"](y.mean((2, 3))))).sigmoid()
            x = x + y * gate[:, :, None, None]
        return self.head(x.mean((2, 3)))


def test_a_gate_that_is_computed_from_the_stream_is_no_modulation() -> None:
    program = progc.capture(Excited(), (torch.randn(2, 3, 8, 8),))
    assert len(program.chains) == 1
    assert parts(program)["modulation"] == set()


def test_without_blocks_the_head_is_what_makes_the_outputs() -> None:
    kinds = parts(captured("own:conv")[1])
    assert kinds["head"] == both("head") and kinds["embeddings"] == set()


@pytest.mark.parametrize("name", ["own:tied", "transformers:bert_mlm"])
def test_names_are_canonical(name: str) -> None:
    program = captured(name)[1]
    known = {canonical for canonical, _ in program.parameters()}
    assert program.tied and all(names <= known for names in Kinds(program, Blocks(program)).found.values())
