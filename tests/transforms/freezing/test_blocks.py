"""Blocks in order of execution, and what stands before, between and behind them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.transforms.freezing.blocks import Blocks
from tests.analysis.chains import nets
from tests.transforms.freezing.networks import diffuser
from tests.zoo import captured


def test_the_stem_is_what_the_first_block_depends_on() -> None:
    blocks = Blocks(diffuser())
    assert [unit.label for unit in blocks.units] == ["blocks.0", "blocks.1", "blocks.2"]
    conditioning = {f"time.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")} | {"labels.weight"}
    assert blocks.stem == {"patches.weight", "patches.bias", "positions"} | conditioning
    assert blocks.behind == {f"{name}.{leaf}" for name in ("last", "last_modulate") for leaf in ("weight", "bias")}
    assert not blocks.between(3)


def test_blocks_that_change_the_width_are_counted() -> None:
    blocks = Blocks(captured("timm:resnet18@64")[1])
    assert [unit.label for unit in blocks.units] == [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]
    assert blocks.stem == {"conv1.weight", "bn1.weight", "bn1.bias"} and blocks.behind == {"fc.weight", "fc.bias"}
    assert "layer2.0.downsample.0.weight" in blocks.units[2].parameters


def test_what_stands_between_stages() -> None:
    blocks = Blocks(captured("timm:swin@56")[1])
    assert len(blocks.units) == 8 and not blocks.between(2)
    assert {name.split(".")[1] for name in blocks.between(3)} == {"1"}
    assert {name.split(".")[1] for name in blocks.between(8)} == {"1", "2"}
    assert all(".downsample." in name for name in blocks.between(8))


def test_blocks_that_have_no_modules() -> None:
    blocks = Blocks(captured("own:flat")[1])
    assert len(blocks.units) == 4 and len(blocks.inside) == 28
    assert blocks.units[1].parameters == {f"{kind}_1" for kind in ("g", "s", "k", "w1", "b1", "w2", "b2")}
    assert blocks.stem == {"stem_w", "stem_b"} and blocks.behind == {"head_w", "head_b"}


def test_a_network_without_chains() -> None:
    blocks = Blocks(captured("own:conv")[1])
    assert not blocks.units and not blocks.stem and not blocks.behind and not blocks.between(0)


def test_the_parameters_of_a_network_are_divided_without_rest() -> None:
    for name in ("timm:swin@56", "timm:resnet18@64", "transformers:bert_mlm", "diffusers:dit"):
        program = captured(name)[1]
        blocks = Blocks(program)
        parts = [
            *(unit.parameters for unit in blocks.units),
            blocks.stem,
            blocks.between(len(blocks.units)),
            blocks.behind,
        ]
        assert sum(map(len, parts)) == len(set().union(*parts)) == len(list(program.parameters())), name


class Tied(nn.Module):
    """Three residual blocks; one weight of each is that of the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nets.Residual(4) for _ in range(3)))
        self.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for block, head in zip(self.blocks, self.heads, strict=True):
            head.weight = block.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return sum(head(x) for head in self.heads)


def test_what_a_block_shares_with_the_head_is_not_its_own() -> None:
    """It would freeze with the block, and the head with it."""
    blocks = Blocks(progc.capture(Tied(), (torch.randn(2, 4),)))
    assert [unit.parameters for unit in blocks.units] == [
        {f"blocks.{i}.a.bias", f"blocks.{i}.b.weight", f"blocks.{i}.b.bias"} for i in range(3)
    ]


@pytest.mark.parametrize("kept", [0, 1])
def test_every_block_counts_once_where_a_skip_divides_a_container(kept: int) -> None:
    """Into a block that stays and a chain, or into two chains."""
    blocks = Blocks(progc.capture(nets.Skips(kept), (torch.randn(2, 8),)))
    assert [unit.label for unit in blocks.units] == [f"blocks.{i}" for i in range(4)]
