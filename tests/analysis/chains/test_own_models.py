"""Chains of networks written for the purpose: what is found, what is refused, and why."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import fx, nn

import progc
from progc.analysis.chains import Chain, ChainTable
from progc.ir.program import MODES, Program
from tests.analysis.chains import nets


def program_of(model: nn.Module, *args: Any) -> Program:
    return progc.capture(model, args)


def table_of(model: nn.Module, *args: Any) -> ChainTable:
    return program_of(model, *args).chains


def numbers(chain: Chain) -> list[int]:
    return [block.index for block in chain.blocks]


def reason(table: ChainTable) -> str:
    assert not table.chains
    assert len(table.refused) == 1
    return table.refused[0].reason


def test_flat_transformer() -> None:
    program = program_of(nets.Flat(), torch.randn(2, 6, 8))
    (chain,) = program.chains
    assert (numbers(chain), chain.period, chain.siblings, chain.source) == ([0, 1, 2, 3], 1, 4, "structure")
    assert chain.blocks[1].tensors == ("gain_1", "qkv_1", "out_1", "up_1", "down_1")
    assert chain.blocks[1].patterns == ("gain_#", "qkv_#", "out_#", "up_#", "down_#")
    for mode in MODES:
        nodes = {node.name: node for node in program.graphs[mode].nodes}
        assert [len(values) for values in chain.carried[mode]] == [1] * 5
        # The last dropout belongs to the block, and a block ends with the residual sum.
        assert str(nodes[chain.carried[mode][4][0]].target) == "aten.add.Tensor"
        assert sum("dropout" in str(nodes[name].target) for name in chain.blocks[3].nodes[mode]) == 2


def test_flat_alternating_blocks_have_period_two() -> None:
    (chain,) = table_of(nets.Alternating(), torch.randn(2, 6, 8))
    assert (chain.name, chain.period, numbers(chain)) == ("p.blk#_", 2, [0, 1, 2, 3])
    assert chain.differences == ("window shift: 0, 1, 0, 1",)


def test_a_chain_ends_with_a_whole_period() -> None:
    blocks = [nets.Masked([1.0, 0.0, 1.0, 1.0]) if i % 2 else nets.Residual(4) for i in range(5)]
    (chain,) = table_of(nn.Sequential(*blocks), torch.randn(2, 4))
    assert (chain.period, numbers(chain), chain.siblings) == (2, [0, 1, 2, 3], 5)


def test_block_spread_over_several_lists() -> None:
    table = table_of(nets.SplitLists(), torch.randn(2, 5, 16))
    (chain,) = table
    assert numbers(chain) == [0, 1, 2]
    assert {pattern.partition(".")[0] for pattern in chain.blocks[0].patterns} == {"norms", "mixers", "mlps"}
    assert not table.refused


def test_counters_go_with_their_norm() -> None:
    (chain,) = table_of(nets.FlatNorm(), torch.randn(2, 4, 6, 6))
    assert numbers(chain) == [0, 1, 2]
    for block in chain.blocks:
        assert f"bn{block.index}.num_batches_tracked" in block.tensors
        assert len(block.nodes["train"]) == len(block.nodes["eval"]) + 1


def test_symbolic_trace_of_a_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), *[nets.Residual(8) for _ in range(3)], nn.Linear(8, 3))
    (chain,) = table_of(fx.symbolic_trace(model), torch.randn(2, 8))
    assert numbers(chain) == [1, 2, 3]


def test_names_without_a_number_are_refused() -> None:
    assert "do not differ in exactly one increasing number" in reason(table_of(nets.Lettered(), torch.randn(2, 8)))


def test_numbers_with_gaps_are_refused() -> None:
    """A block that is inserted after the first would be called as the second."""
    assert "do not increase by one from block to block" in reason(table_of(nets.Lettered("024"), torch.randn(2, 8)))


def test_numbers_that_do_not_agree_within_a_block_are_refused() -> None:
    assert "disagree about where a block begins" in reason(table_of(nets.Misaligned(), torch.randn(2, 8)))


def test_flat_skips_are_refused() -> None:
    assert "also read by" in reason(table_of(nets.FlatSkips(), torch.randn(2, 8)))


@pytest.mark.parametrize(
    ("kept", "chains"), [(-1, [[0, 1, 2, 3]]), (0, [[1, 2, 3]]), (1, [[0, 1], [2, 3]]), (3, [[0, 1, 2, 3]])]
)
def test_a_skip_rules_its_boundary_out(kept: int, chains: list[list[int]]) -> None:
    table = table_of(nets.Skips(kept), torch.randn(2, 8))
    assert [numbers(chain) for chain in table] == chains
    assert len({chain.name for chain in table}) == len(chains)
    if kept == 0:
        assert "also read by" in table.refused[0].reason


def test_two_carried_values_keep_their_places() -> None:
    program = program_of(nets.TwoStreams(), torch.randn(2, 8), torch.randn(2, 3, 8))
    (chain,) = program.chains
    assert numbers(chain) == [0, 1, 2]
    nodes = {node.name: node for node in program.graphs["eval"].nodes}
    placeholder = next(iter(nodes))
    place = chain.carried["eval"][0].index(next(n.name for n in nodes.values() if n.op == "placeholder"))
    assert placeholder is not None
    for boundary in chain.carried["eval"][1:]:
        # The first stream ends in a sum whose first argument is the first stream at the boundary before.
        before = chain.carried["eval"][chain.carried["eval"].index(boundary) - 1][place]
        assert nodes[boundary[place]].args[0] is nodes[before]
    assert "table" in chain.shared["eval"]
    assert len(chain.shared["eval"]) == 2


def test_blocks_with_inputs_of_their_own_are_refused() -> None:
    table = table_of(nets.TwoStreams(own_inputs=True), torch.randn(2, 8), torch.randn(2, 3, 8))
    assert not table.chains
    assert all("read different values from outside" in refused.reason for refused in table.refused)


def test_blocks_with_another_constant_are_no_part_of_the_chain() -> None:
    """The masks have one shape, and are values in the forward of the block."""
    masks = ([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0])
    (chain,) = table_of(nn.Sequential(*map(nets.Masked, masks)), torch.randn(2, 4))
    assert numbers(chain) == [0, 1]


def test_nested_concatenation_is_dense() -> None:
    program = program_of(nets.NestedDense(), torch.randn(2, 4, 6, 6))
    (chain,) = program.chains
    assert (chain.kind, numbers(chain)) == ("dense", [0, 1, 2])
    assert [len(values) for values in chain.carried["eval"]] == [1, 2, 3, 4]
    assert chain.cats["eval"][0] == ""


@pytest.mark.parametrize("kept", [0, 1])
def test_a_layer_that_something_else_reads_is_not_dense(kept: int) -> None:
    """What reads it would miss the new layers."""
    assert not table_of(nets.NestedDense(kept=kept), torch.randn(2, 4, 6, 6)).chains


def test_blocks_called_twice_are_refused() -> None:
    table = table_of(nets.Recurrent(), torch.randn(2, 8))
    assert not table.chains
    assert {refused.reason for refused in table.refused} == {"it is called more than once"}


def test_plain_layers_are_a_chain_only_of_a_plain_network() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.ReLU())]
    (chain,) = table_of(nn.Sequential(*layers, nn.Linear(8, 2)), torch.randn(2, 8))
    assert (chain.period, numbers(chain), chain.later) == (2, [0, 1, 2, 3, 4, 5], ("6",))
    stem = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    model = nn.Sequential(stem, nets.Residual(8), nets.Residual(8))
    table = table_of(model, torch.randn(2, 8))
    assert [numbers(chain) for chain in table] == [[1, 2]]


def test_scalars_of_a_block_may_differ_and_are_stated() -> None:
    model = nn.Sequential(*[nets.Residual(8, scale) for scale in (1.0, 0.5, 0.25)])
    (chain,) = table_of(model, torch.randn(2, 8))
    assert chain.differences == ("scalar of mul: 1, 0.5, 0.25",)


def test_stochastic_depth_is_no_difference_of_kind() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2, drop_path_rate=0.2
    )
    (chain,) = table_of(model, torch.randn(2, 3, 32, 32))
    assert numbers(chain) == [0, 1, 2]
    assert chain.differences == ("drop-path keep probability: none, 0.9, 0.8",)


def test_one_residual_block_is_a_chain() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2)
    (chain,) = table_of(model, torch.randn(2, 3, 32, 32))
    assert (chain.name, numbers(chain), chain.siblings) == ("blocks", [0], 1)


def test_torch_encoder() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    (chain,) = table_of(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 5, 16))
    assert (chain.name, numbers(chain)) == ("layers", [0, 1, 2])


def test_a_network_without_blocks() -> None:
    table = table_of(nn.Linear(4, 2), torch.randn(2, 4))
    assert len(table) == 0
    assert str(table) == "no chains"
    assert table.to_json() == {"chains": [], "refused": []}


def test_table_text_and_json() -> None:
    table = table_of(nets.Skips(0), torch.randn(2, 8))
    node = table.refused[0].reason.split("`")[1]
    assert str(table).replace(node, "NODE") == (
        "chain   kind      period  blocks  siblings  carried  differences\n"
        "blocks  residual  1       1-3     4         1        none\n"
        "\n"
        "refused\n"
        "  blocks.0  the exit of blocks.0 is also read by `NODE` in the forward of the model, not only by blocks.1"
    )
    (chain,) = table.to_json()["chains"]
    assert chain["blocks"] == ["blocks.1", "blocks.2", "blocks.3"]
    assert chain["siblings"] == 4
    with pytest.raises(KeyError):
        table["layers"]
