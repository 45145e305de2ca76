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

import progc
from bench import pairs
from bench.pair_lists import FAMILIES, NAMED
from bench.pair_table import page
from progc.ir.program import Program
from progc.models.opening import resolve_target
from tests import zoo
from tests.command import in_process, in_subprocess
from tests.grown import assert_loads


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
    _pair("resnet50", "wide_resnet50_2", 64, 25_557_032, 68_883_240),
    _pair("efficientnet_b1", "efficientnet_b2", 64, 7_794_184, 9_109_994),
    _pair("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", 224, 28_288_354, 49_606_258),
    Pair("torchvision:vit_b_16", "depth*2", _vit_b_16(12), _vit_b_16(24), 224, (86_567_656, 171_622_120)),
]


# Two of full size for each commit, a transformer and a convolutional network; the others take 10 to 40 seconds each.
QUICK = ("timm:deit_tiny_patch16_224", "timm:resnet18")


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(
            pair, id=f"{pair.source} to {pair.target}", marks=[] if pair.source in QUICK else [pytest.mark.slow]
        )
        for pair in PAIRS
    ],
)
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


def _wide(base: int) -> nn.Module:
    """A resnet whose inner convolutions have `base` of 64 parts of the usual width."""
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 2, 1, 1), channels=(8, 8, 12, 8), base_width=base, num_classes=5)


def _swin(*depths: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=28, patch_size=2, window_size=7, embed_dim=8, depths=depths, num_heads=(1, 2), num_classes=5
    )


@pytest.mark.parametrize(
    ("small", "large", "side"),
    [
        pytest.param(lambda: _wide(64), lambda: _wide(128), 32, id="resnet50 to wide_resnet50_2"),
        pytest.param(
            lambda: _swin(2, 2), lambda: _swin(2, 6), 28, id="swin_tiny to swin_small", marks=pytest.mark.slow
        ),
    ],
)
def test_pairs_at_a_small_size(small: Callable[[], nn.Module], large: Callable[[], nn.Module], side: int) -> None:
    module, inputs = zoo.perturb(small()).eval(), (zoo.image(side),)
    grown = progc.grow(progc.capture(module, inputs), progc.capture(large().eval(), inputs))
    assert_loads(large().eval(), grown.state_dict(), module, inputs, {})


_CONV = """
import torch
def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, {width}, 3), torch.nn.ReLU(), torch.nn.{pool}, torch.nn.Flatten(), torch.nn.Linear({last}, 2)
    )
def example_inputs():
    return (torch.randn(2, 3, {side}, {side}),)
"""


def _captured(path: Path, width: int, side: int, fixed: bool, source: Program | None, notes: list[str]) -> Program:
    pool = "MaxPool2d(2)" if fixed else "AdaptiveAvgPool2d(1)"
    last = width * ((side - 2) // 2) ** 2 if fixed else width
    path.write_text(_CONV.format(width=width, side=side, pool=pool, last=last), encoding="utf-8")
    found = resolve_target(str(path), source, notes=notes)
    assert isinstance(found, Program)
    return found


def test_a_target_of_another_input_size_is_called_like_the_source_where_it_can_be(tmp_path: Path) -> None:
    notes: list[str] = []
    source = _captured(tmp_path / "small.py", 4, 8, False, None, notes)
    assert notes == []
    target = _captured(tmp_path / "large.py", 8, 12, False, source, notes)
    assert target.signature.shapes == ((2, 3, 8, 8),)
    assert notes == [f"{tmp_path / 'large.py'} is called with the source's input sizes; its own are 3x12x12"]


def test_a_target_that_is_built_for_one_input_size_keeps_it(tmp_path: Path) -> None:
    notes: list[str] = []
    source = _captured(tmp_path / "small.py", 4, 8, True, None, notes)
    target = _captured(tmp_path / "large.py", 8, 12, True, source, notes)
    assert target.signature.shapes == ((2, 3, 12, 12),) and notes == []


def test_every_named_pair_belongs_to_a_family() -> None:
    assert NAMED.keys() <= FAMILIES.keys()
    keys = [key for keys in FAMILIES.values() for key in keys]
    assert len(set(keys)) == len(keys) and all(key.count(":") == 1 for key in keys)


def test_recorded_pairs_of_other_versions_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "pairs.jsonl"
    assert pairs.recorded(log, "1") == {}
    row = {"source": "a:b", "target": "a:c", "outcome": "lossless"}
    for version, outcome in (("1", "refused"), ("2", "failed"), ("1", "lossless")):
        pairs.write(log, {**row, "version": version, "outcome": outcome})
    assert pairs.recorded(log, "1")["a:b", "a:c"]["outcome"] == "lossless"
    assert pairs.matches("b", "a:b") and pairs.matches("a:*", "a:b") and not pairs.matches("c", "a:b", "family")


def test_the_table_counts_and_says_why() -> None:
    row = {
        "version": "0 torch 2", "family": "f", "source": "a:s", "target": "a:t", "params": [1e6, 2e6], "alike": "",
        "notes": [], "reason": "", "outcome": "lossless", "compared": "all outputs",
    }  # fmt: skip
    rows: list[dict[str, Any]] = [
        {**row, "measured": 3e-16},
        {**row, "compared": "old classes"},
        {**row, "alike": "img_size=224", "refused_as_published": "A does not grow into B: kernels | differ"},
        {**row, "outcome": "refused", "reason": "A.B does not grow into A.B: x [1] -> [2]", "lossy_rel_diff": 0.25},
    ]
    text = page(rows)
    assert "| lossless, loads strictly | 1 | 1 |" in text and "| all | 4 | 1 |" in text
    assert "| s -> t | 1.0 M -> 2.0 M | lossless, loads strictly | 3e-16 |" in text
    assert "with the target built with `img_size=224`" in text and "- t as published: kernels \\| differ" in text
    assert "| **refused**: x [1] -> [2] | `--lossy`: 0.2 |" in text
