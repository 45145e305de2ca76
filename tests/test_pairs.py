"""Published pairs of sizes: grown through the command line, loaded into the larger class, the same answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests import zoo
from tests.command import in_process, in_subprocess
from tests.growth import assert_loads


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(name)
        return module

    return build


def _vit_b_16(layers: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models.vision_transformer import VisionTransformer

        return VisionTransformer(
            image_size=224, patch_size=16, num_layers=layers, num_heads=12, hidden_dim=768, mlp_dim=3072
        )

    return build


@dataclasses.dataclass(frozen=True)
class Pair:
    """What the user types, both classes, the image side for the comparison, and what the command must report."""

    source: str
    target: str
    build: Callable[[], nn.Module]
    reference: Callable[[], nn.Module]
    side: int
    params: tuple[int, int]


def _pair(source: str, target: str, side: int, *params: int) -> Pair:
    return Pair(f"timm:{source}", f"timm:{target}", _timm(source), _timm(target), side, (params[0], params[1]))


PAIRS = [
    _pair("vit_tiny_patch16_224", "vit_base_patch16_224", 224, 5_717_416, 86_567_656),
    _pair("deit_tiny_patch16_224", "deit_small_patch16_224", 224, 5_717_416, 22_050_664),
    _pair("resnet18", "resnet34", 64, 11_689_512, 21_797_672),
    _pair("resnet50", "resnet101", 64, 25_557_032, 44_549_160),
    _pair("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", 224, 28_288_354, 49_606_258),
    Pair("torchvision:vit_b_16", "depth*2", _vit_b_16(12), _vit_b_16(24), 224, (86_567_656, 171_622_120)),
]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.source} to {pair.target}")
def test_the_target_class_loads_what_grow_writes_and_answers_the_same(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = zoo.perturb(pair.build())
    weights, out = tmp_path / "small.safetensors", tmp_path / "grown"
    save_file(module.state_dict(), weights)
    arguments: list[Any] = ["grow", pair.source, "--to", pair.target, "--weights", weights, "--out", out, "--json"]
    if pair is PAIRS[0]:  # one as users run it; the others in this process, which has imported torch already
        outcome = in_subprocess(arguments, cwd=tmp_path)
    else:
        outcome = in_process(capsys)(*arguments)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["lossless"] is True and report["reasons"] == []
    assert report["max_rel_diff"] < 1e-9
    assert (report["params_before"], report["params_after"]) == pair.params
    image = torch.randn(1, 3, pair.side, pair.side)
    assert_loads(pair.reference(), load_file(out / "model.safetensors"), module, (image,), {})
