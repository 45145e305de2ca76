"""What a chain says is enough to repeat its blocks: nodes and carried values, checked against the repeated module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import progc
from progc.analysis.chains import Chain
from progc.ir.program import MODES, Mode, Program
from tests import zoo
from tests.analysis.chains import nets


def repeated(program: Program, chain: Chain, start: int, mode: Mode) -> fx.Graph:
    """The graph with the period of blocks that begins at `start` computed twice in a row, with the same weights."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    stop = start + chain.period
    members = {name for block in chain.blocks[start:stop] for name in block.nodes[mode]}
    left = set(members)
    originals: list[fx.Node] = []
    for node in program.graphs[mode].nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.name not in members:
            continue
        originals.append(node)
        left.discard(node.name)
        if left:
            continue
        by_name = {old.name: old for old in env}
        again = dict(env)
        for entry, exit_ in zip(chain.carried[mode][start], chain.carried[mode][stop], strict=True):
            again[by_name[entry]] = env[by_name[exit_]]
        for old in originals:
            again[old] = graph.node_copy(old, again.__getitem__)
        for exit_ in chain.carried[mode][stop]:
            env[by_name[exit_]] = again[by_name[exit_]]
    graph.lint()
    return graph


def run(program: Program, chain: Chain, start: int, mode: Mode) -> Tensor:
    graphs = {**program.graphs, mode: repeated(program, chain, start, mode)}
    args, kwargs = program.example
    with torch.no_grad():
        return first(program.replace(graphs=graphs).module().train(mode == "train")(*args, **kwargs))


def first(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else output[0]
    assert isinstance(found, Tensor)
    return found


def doubled(model: nn.Module, container: str, start: int, period: int) -> nn.Module:
    """The user's module with blocks `start .. start + period - 1` of a container repeated."""
    grown = copy.deepcopy(model)
    parent, _, name = container.rpartition(".")
    old = grown.get_submodule(container)
    blocks = list(old.children())
    many = [*blocks[: start + period], *blocks[start:]]
    new = nn.Sequential(*many) if isinstance(old, nn.Sequential) else nn.ModuleList(many)
    setattr(grown.get_submodule(parent), name, new)
    return grown


@pytest.mark.parametrize(
    ("name", "chain", "start"),
    [
        ("timm:vit_tiny_patch16_224@64", "blocks", 0),
        ("timm:vit_tiny_patch16_224@64", "blocks", 3),
        ("timm:swin@56", "layers.1.blocks", 2),
        ("timm:resnet50@64", "layer3", 1),
        ("timm:mobilenetv3_small_100@64", "blocks.1", 0),
        ("transformers:bert", "encoder.layer", 1),
    ],
)
def test_repeating_a_block_is_repeating_the_module(name: str, chain: str, start: int) -> None:
    model, program = zoo.captured(name)
    found = program.chains[chain]
    grown = doubled(model, chain, found.blocks[start].index, found.period).eval()
    args, kwargs = program.example
    with torch.no_grad():
        wanted = first(grown(*args, **kwargs))
    torch.testing.assert_close(run(program, found, start, "eval"), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda depth: nets.Flat(depth, drop=0.0), (2, 6, 8)),
        (lambda depth: nets.Alternating(2 * depth), (2, 6, 8)),
        (nets.FlatNorm, (2, 4, 6, 6)),
    ],
    ids=["flat", "alternating", "flat-norm"],
)
def test_repeating_the_last_period_is_the_deeper_network(
    build: Callable[[int], nn.Module], shape: tuple[int, ...], mode: Mode
) -> None:
    x = torch.randn(shape)
    small, large = build(2), build(3)
    program = progc.capture(small, (x,))
    (chain,) = program.chains
    state = small.state_dict()
    for block in chain.blocks[-chain.period :]:
        for name, pattern in zip(block.tensors, block.patterns, strict=True):
            state[pattern.replace("#", str(block.index + chain.period))] = state[name]
    large.load_state_dict(state)
    large.train(mode == "train")
    with torch.no_grad():
        wanted = large(x)
    torch.testing.assert_close(run(program, chain, len(chain.blocks) - chain.period, mode), wanted)


def test_repeating_a_block_with_two_streams() -> None:
    model = nets.TwoStreams()
    x, condition = torch.randn(2, 8), torch.randn(2, 3, 8)
    program = progc.capture(model, (x, condition))
    (chain,) = program.chains
    found = run(program, chain, 2, "eval")
    with torch.no_grad():
        y = x.tanh()
        for block in [*model.blocks, model.blocks[-1]]:
            x, y = block(x, y, condition[:, 0] * 2, model.table)
    torch.testing.assert_close(found, x + y)
