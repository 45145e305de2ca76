"""Blocks without a skip path: layers that become the identity, exact where the activation is idempotent."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.passes.grow_depth import GrowDepth
from progc.transforms.depth.layers import neutral
from tests import zoo
from tests.passes.deepened import check_alive, check_lossless, grown

CHANNELS = 4


class Layers(nn.Module):
    """One block over f32[batch, CHANNELS, 6, 6] that adds nothing to its entry."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        kernel: Any = {"rectangular": (3, 5), "even": 2, "point": 1}.get(style, 3)
        padding: Any = {"rectangular": (1, 2), "even": "same", "point": 0, "dilated": 2}.get(style, 1)
        self.conv = nn.Conv2d(
            CHANNELS, CHANNELS, kernel, padding=padding, dilation=2 if style == "dilated" else 1,
            groups={"depthwise": CHANNELS, "grouped": 2}.get(style, 1), bias=style != "norm",
            padding_mode="reflect" if style == "padded" else "zeros",
        )  # fmt: skip
        if style in ("norm", "no affine", "batch statistics", "gelu norm"):
            self.norm = nn.BatchNorm2d(
                CHANNELS, affine=style != "no affine", track_running_stats=style != "batch statistics"
            )
        if style in ("collects", "collects in groups"):
            self.more = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
            groups = 2 if "groups" in style else 1
            self.conv = nn.Conv2d(2 * CHANNELS, CHANNELS, 1, groups=groups)
            self.norm = nn.BatchNorm2d(CHANNELS)
        if style == "narrow":
            self.conv = nn.Conv2d(CHANNELS, CHANNELS - 1, 1)
            self.back = nn.Conv2d(CHANNELS - 1, CHANNELS, 1)
        if style in ("branches", "transition"):
            self.other = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        style = self.style
        if style == "collects":
            return F.relu(self.norm(self.conv(torch.cat([F.relu(self.more(x)), x], 1))))
        if style == "collects in groups":
            return F.relu(self.norm(self.conv(torch.cat([x, F.relu(self.more(x))], 1))))
        if style == "branches":
            return F.relu(self.conv(x) + self.other(x))
        if style == "transition":
            return F.relu(self.conv(x + self.other(x)))
        if style == "narrow":
            return F.relu(self.back(F.relu(self.conv(x))))
        if style == "relu6":
            return F.relu6(self.conv(x))
        if style in ("gelu", "gelu norm"):
            return F.gelu(self.norm(self.conv(x)) if style == "gelu norm" else self.conv(x))
        if style == "linear":
            return self.conv(x)
        y = self.conv(x)
        return F.relu(self.norm(y) if hasattr(self, "norm") else y)


class Net(nn.Module):
    """Stem, `depth` such blocks, head."""

    def __init__(self, style: str, depth: int = 3) -> None:
        super().__init__()
        self.style = style
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(Layers(style) for _ in range(depth))
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.stem(x)) if self.style == "relu6" else F.relu(self.stem(x)), 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def captured(model: nn.Module) -> Program:
    return progc.capture(zoo.perturb(model).eval(), (torch.randn(4, 3, 12, 12),))


EXACT = [
    "conv", "norm", "point", "rectangular", "dilated", "depthwise", "grouped", "padded", "relu6", "collects",
    "branches", "transition", "linear",
]  # fmt: skip


@pytest.mark.parametrize("style", EXACT)
def test_layers_become_the_identity(style: str) -> None:
    program = captured(Net(style))
    result = grown(program, to="7")
    check_lossless(program, result)
    check_alive(result)
    reference = Net(style, depth=7).eval()
    reference.load_state_dict(result.program.state_dict(), strict=True)
    x = program.example[0][0]
    assert torch.allclose(reference(x), result.program.module().eval()(x), atol=1e-6)
    inserted = result.program.tensors["blocks.1.conv.weight"].detach()
    assert result.lift is not None and Lift.from_json(json.loads(json.dumps(result.lift.to_json()))) == result.lift
    assert float(inserted.sum()) == CHANNELS and sorted(inserted.unique().tolist()) == [0.0, 1.0]


def test_batch_norm_is_the_identity_in_eval_mode_and_says_so() -> None:
    result = grown(captured(Net("norm")), to="5")
    assert result.lossless is True
    assert "identity in eval mode; in train mode aten.batch_norm.default" in result.notes[0]
    assert result.eval_only == result.notes
    plain = grown(captured(Net("conv")), to="5")
    assert not plain.notes and not plain.eval_only


REFUSED = {
    "gelu": "aten.gelu.default .* changes the value",
    "gelu norm": "aten.gelu.default .* changes the value",
    "no affine": "cannot represent the gain that undoes its eps of 1e-05",
    "batch statistics": "normalises by batch statistics in eval mode too",
    "collects in groups": "turns 8 channels into 4",
    "narrow": "turns 4 channels into 3",
}


@pytest.mark.parametrize("style", REFUSED)
def test_layers_that_cannot_be_the_identity(style: str) -> None:
    program = captured(Net(style))
    with pytest.raises(NotLosslessError, match=REFUSED[style]):
        GrowDepth(to="5").run(program)
    assert grown(program, to="5", lossy=True).lossless is False


def test_a_shared_layer_is_not_set_to_the_identity() -> None:
    model = Net("conv")
    for block in model.blocks[1:]:
        block.conv = model.blocks[0].conv
    with pytest.raises(NotLosslessError, match="conv.weight.* is not the block's own"):
        GrowDepth(to="5").run(captured(model))


def test_an_even_kernel_has_a_tap_that_copies() -> None:
    """Padding `same` puts the odd row behind, so the first tap stands on the pixel itself."""
    program = captured(Net("even"))
    result = grown(program, to="5")
    check_lossless(program, result)
    assert float(result.program.tensors["blocks.2.conv.weight"].detach()[2, 2, 0, 0]) == 1.0


def test_a_block_behind_values_of_both_signs_is_refused() -> None:
    class Minus(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - 1

    model = Net("conv")
    model.blocks = nn.ModuleList(Minus("conv") for _ in range(3))
    with pytest.raises(NotLosslessError, match="cannot be the identity"):
        GrowDepth(to="5").run(captured(model))


def test_neutral_gain_undoes_eps_to_the_last_bit_that_counts() -> None:
    for eps in (1e-5, 1e-3, 1e-12):
        variance, gain = neutral(eps, torch.float32, torch.float32, "norm")
        assert abs((variance + eps) ** 0.5 / gain - 1) < 1e-11
        assert torch.tensor([variance, gain]).double().tolist() == [variance, gain]
    with pytest.raises(NotLosslessError, match="cannot represent the gain"):
        neutral(1e-5, torch.bfloat16, torch.bfloat16, "norm")


def test_numbered_single_layers_load_into_the_deeper_class() -> None:
    """Three repeats of convolution, norm and activation behind a wider one: periods end in the activation."""
    vgg = importlib.import_module("torchvision.models.vgg")

    def build(repeats: int) -> nn.Module:
        model = vgg.VGG(vgg.make_layers([4, "M", *[8] * repeats, "M", 12], batch_norm=True), num_classes=3)
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 3)
        return model

    program = captured(build(4))
    (chain,) = program.chains
    assert chain.period == 3 and chain.blocks[-1].label == "features.15"
    result = grown(program, to=f"{chain.name}:{chain.siblings + 6}")
    check_lossless(program, result)
    build(6).load_state_dict(result.program.state_dict(), strict=True)


@pytest.mark.slow
def test_a_real_plain_network() -> None:
    timm = importlib.import_module("timm")
    model = timm.create_model("vgg11", num_classes=3)
    model.pre_logits = nn.Identity()
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 3))
    program = progc.capture(zoo.perturb(model).eval(), (torch.randn(2, 3, 64, 64),))
    result = grown(program)
    assert result.counts == {"blocks inserted": 4, "chains grown": 1}
    check_lossless(program, result)
