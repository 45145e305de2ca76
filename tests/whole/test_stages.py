"""All passes of a progressive training in one pipeline, on the command line and with an optimizer that goes along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import progc
from tests.command import Command
from tests.sweeps import some
from tests.zoo import perturb

STAGES = (
    "shrink{{depth=0.5 resolution={small}}},grow-depth{{to={depth} init=mogrow}},grow-resolution{{to={full}}},"
    "inject-sid{{stages=4}},freeze{{level=1 of=4}}"
)
DIT: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "sample_size": 16, "num_embeds_ada_norm": 5,
    "in_channels": 4, "out_channels": 8,
}  # fmt: skip
OWN = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(dim), nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.up, self.down = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)

    def forward(self, x):
        y = self.mix(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.down(torch.nn.functional.gelu(self.up(y)))

class Own(nn.Module):
    def __init__(self, depth=4, dim=8, side=16):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 2, 2)
        self.places = nn.Parameter(torch.randn(1, side // 2, side // 2, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))

def build():
    return Own()

def example_inputs():
    return (torch.randn(2, 3, 16, 16),)
"""


def vit(folder: Path) -> tuple[str, str, nn.Module]:
    pipeline = STAGES.format(small=160, depth=12, full=224)
    return "timm:deit_small_patch16_224", pipeline, timm.create_model("deit_small_patch16_224")


def dit(folder: Path) -> tuple[str, str, nn.Module]:
    model = diffusers.DiTTransformer2DModel(**DIT)
    model.save_config(folder / "dit")
    return f"diffusers:{folder / 'dit'}", STAGES.format(small=8, depth=4, full=16), model


def own(folder: Path) -> tuple[str, str, nn.Module]:
    path = folder / "own.py"
    path.write_text(OWN)
    scope: dict[str, Any] = {"__name__": "own"}
    exec(compile(OWN, str(path), "exec"), scope)
    return str(path), STAGES.format(small=8, depth=4, full=16), scope["build"]()


@pytest.mark.parametrize("make", some([vit, dit, own], [own]))
def test_a_pipeline_of_all_passes(
    make: Callable[[Path], tuple[str, str, nn.Module]], run: Command, tmp_path: Path
) -> None:
    """The last network of a schedule, its identifier folded away, is the user's own class at its full size."""
    source, pipeline, model = make(tmp_path)
    done = run("apply", source, "--pipeline", pipeline, "--out", tmp_path / "staged")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "staged" / "report.json").read_text())
    assert [step["changed"] for step in report["passes"]] == [True] * 5 and report["lossless"] is False
    staged = load_file(tmp_path / "staged" / "model.safetensors")
    assert staged.keys() - model.state_dict().keys() == {"stage_embedding.weight"}

    told = json.loads(run("diff", source, tmp_path / "staged", "--json").out)
    assert [item["name"] for item in told["after"]["inputs"]][-1] == "stage" and told["tensors"]["added"] == 1
    assert told["after"]["trainable"] < told["after"]["params"] and told["chains"] == []

    done = run("apply", source, "--pipeline", f"{pipeline},remove-sid", "--out", tmp_path / "last")
    assert done.code == 0, done.err
    model.load_state_dict(load_file(tmp_path / "last" / "model.safetensors"), strict=True)


def test_an_optimizer_and_averages_go_through_all_passes() -> None:
    """What trains is what the optimizer holds; frozen state comes back; the class computes what was trained."""
    torch.manual_seed(0)
    model = perturb(_vit(depth=4))
    program = progc.capture(model, (torch.randn(2, 3, 32, 32),))
    module = program.module().train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in module.parameters() if p.dim() > 1], "lr": 1e-3},
            {"params": [p for p in module.parameters() if p.dim() <= 1], "lr": 2e-3, "weight_decay": 0.0},
        ]
    )
    averages = progc.EMA(module, decays=(0.5, 0.9))
    _train(module, optimizer, averages)

    first = progc.apply(program, "shrink{depth=0.5 storage=copy}", optimizer=optimizer, ema=averages)
    _train(first.module().train(), optimizer, averages)
    second = progc.apply(
        first,
        "grow-depth{to=4 init=mogrow},inject-sid{stages=2},freeze{level=1 of=2}",
        optimizer=optimizer,
        ema=averages,
    )
    module = second.module().train()
    assert _held(optimizer) == {id(p) for p in module.parameters() if p.requires_grad}
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-3]
    assert all(average.tensors.keys() == second.tensors.keys() for average in second.averages)
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    _train(module, optimizer, averages, stage=torch.tensor([0, 1]))
    assert frozen and all(torch.equal(module.get_parameter(name), value) for name, value in frozen.items())

    third = progc.apply(second, "freeze", optimizer=optimizer, ema=averages)
    module = third.module().train()
    assert _held(optimizer) == {id(p) for p in module.parameters()}
    assert all("exp_avg" in optimizer.state[module.get_parameter(name)] for name in frozen)
    _train(module, optimizer, averages, stage=torch.tensor([1, 1]))

    last = progc.apply(third, "remove-sid", optimizer=optimizer, ema=averages)
    model.load_state_dict(last.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    expected = third.module().eval()(x, stage=torch.tensor([1, 1]))
    assert torch.allclose(model.eval()(x), expected, atol=1e-5)
    _train(last.module().train(), optimizer, averages)


def _vit(depth: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=depth, num_heads=2, num_classes=5)


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _train(module: nn.Module, optimizer: torch.optim.Optimizer, averages: progc.EMA, **inputs: Tensor) -> None:
    for _ in range(2):
        module(torch.randn(2, 3, 32, 32), **inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.update(module)
