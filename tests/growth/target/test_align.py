"""Target models: sizes are found factor by factor, and whatever does not correspond is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError, TargetError
from progc.growth.grow import grow_with_report
from progc.growth.target.align import target_depths, target_widths
from progc.ir.differences import differences
from progc.ir.graphs import copy_graph
from progc.ir.program import Program
from tests import zoo
from tests.grown import EXACT, assert_loads
from tests.sweeps import some


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes and habits of `Net`; a habit is something that no weight can make up for."""

    dim: int = 8
    heads: int = 2
    hidden: tuple[int, ...] = (12, 12)
    classes: int = 3
    patch: int = 2
    side: int = 8
    eps: float = 1e-6
    scale: float | None = None
    act: str = "gelu"
    extra: bool = False
    table: float = 1.0
    constant: float = 1.0
    mean: bool = True
    bias: bool = True
    tied: bool = False


class Block(nn.Module):
    def __init__(self, shape: Shape, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.norm1, self.norm2 = (nn.LayerNorm(shape.dim, eps=shape.eps) for _ in range(2))
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=shape.bias)
        self.proj = nn.Linear(shape.dim, shape.dim)
        self.up, self.down = nn.Linear(shape.dim, hidden), nn.Linear(hidden, shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        heads = self.shape.heads
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.shape.scale)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        act: Callable[[Tensor], Tensor] = getattr(F, self.shape.act)
        return x + self.down(act(self.up(self.norm2(x))))


class Net(nn.Module):
    """A ViT with a buffer that no checkpoint holds and a constant that is no buffer at all."""

    table: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Conv2d(3, shape.dim, shape.patch, stride=shape.patch)
        tokens = (shape.side // shape.patch) ** 2
        self.positions = nn.Parameter(torch.randn(tokens, shape.dim) * 0.1)
        self.register_buffer("table", shape.table * torch.arange(tokens)[:, None] / tokens, persistent=False)
        self.blocks = nn.Sequential(*(Block(shape, hidden) for hidden in shape.hidden))
        if shape.extra:
            self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.classes)
        self.weights = shape.constant * torch.linspace(1, 2, shape.side**2)

    def forward(self, image: Tensor) -> Tensor:
        image = image * self.weights.view(self.shape.side, self.shape.side)
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = self.blocks(x + self.positions + self.table)
        if self.shape.extra:
            x = self.norm(x)
        return self.head(x.mean(1) if self.shape.mean else x.amax(1))


def captured(shape: Shape, seed: int = 0) -> tuple[nn.Module, Program]:
    torch.manual_seed(seed)
    model = zoo.perturb(Net(shape)).eval()
    return model, progc.capture(model, (torch.randn(2, 3, shape.side, shape.side),))


LARGER = {
    "depth": Shape(hidden=(12,) * 5),
    "width": Shape(dim=16, heads=4, hidden=(24, 24)),
    "wider heads": Shape(dim=16, heads=2, hidden=(24, 24)),
    "an explicit scale": Shape(dim=16, heads=4, hidden=(24, 24), scale=0.3),
    "twice as many heads, twice as wide": Shape(dim=32, heads=4, hidden=(36, 36)),
    "one block's hidden width, by no whole factor": Shape(hidden=(17, 12)),
    "everything": Shape(dim=24, heads=6, hidden=(30, 30, 30)),
}


@pytest.mark.parametrize(
    "larger", some(LARGER, [name for name in LARGER if name not in ("depth", "width", "wider heads")])
)
def test_a_larger_instance_of_the_class_loads_the_grown_weights(larger: str) -> None:
    module, program = captured(Shape())
    shape = LARGER[larger]
    reference, target = captured(shape, seed=1)
    growth = grow_with_report(program, target)
    assert growth.report["lossless"] is True and growth.report["max_rel_diff"] < 1e-6
    assert list(differences(growth.program, target)) == []
    # 1/sqrt(head dim) and an explicit scale are made up for by a factor, which float32 rounds
    rounded = shape.dim // shape.heads != 4 or shape.scale is not None
    assert_loads(reference, growth.program.state_dict(), module, *program.example, tolerance=1e-6 if rounded else EXACT)


def test_one_block_grows_into_many() -> None:
    module, program = captured(Shape(hidden=(12,)))
    reference, target = captured(Shape(hidden=(12,) * 4))
    assert target_depths(program, target) == {"blocks": 4}
    growth = grow_with_report(program, target)
    assert_loads(reference, growth.program.state_dict(), module, *program.example)


def test_sizes_are_found_factor_by_factor() -> None:
    """qkv has 3 parts x heads x head dim: 24 rows become 96, and only the target's own axes say how."""
    _, program = captured(Shape())
    _, target = captured(Shape(dim=32, heads=4, hidden=(36, 36)))
    sizes = target_widths(program, target)
    meanings = {(program.axes[name].meaning, program.axes[name].size, size) for name, size in sizes.items()}
    assert meanings == {("residual width", 8, 32), ("heads", 2, 4), ("head dim", 4, 8), ("hidden width", 12, 36)}


def test_the_same_size_is_no_growth() -> None:
    _, program = captured(Shape())
    _, target = captured(Shape(), seed=1)
    growth = grow_with_report(program, target)
    assert growth.program is program and str(growth.plan) == "growth plan: nothing grows\n"
    assert growth.report["lossless"] is True and growth.report["max_abs_diff"] == 0


BIG = {"dim": 16, "heads": 4, "hidden": (24, 24, 24)}

REFUSED: dict[str, tuple[Shape, str]] = {
    "a module more": (Shape(**BIG, extra=True), r"only in the target: norm; .*calls aten\.mean.* norm calls"),
    "fewer classes": (Shape(**BIG, classes=2), r"smaller than the source: head\.weight \[3, 8\] -> \[2, 16\]"),
    "another patch size": (
        Shape(**BIG, patch=4, side=16),
        r"embed\.weight: convolution kernel 2x2 in the source, 4x4 in the target$",
    ),
    "more tokens": (
        Shape(**BIG, side=12),
        r"positions \[16, 8\] -> \[36, 16\] \(batch, token or .*; a change of resolution is not a growth",
    ),
    "no bias": (Shape(**BIG, bias=False), r"only in the source: blocks\.0\.qkv, blocks\.1\.qkv, blocks\.2\.qkv$"),
    "a smaller width": (Shape(dim=4, heads=1), r"smaller than the source: positions \[16, 8\] -> \[16, 4\]"),
    "a smaller depth": (Shape(hidden=(12,)), r"is smaller: blocks has 2 blocks in the source and 1 in \S*Net"),
    "another eps": (Shape(**BIG, eps=1e-5), r"blocks\.0\.norm1: .*layer_norm.*1e-06.* the target has .*1e-05"),
    "another activation": (Shape(**BIG, act="silu"), r"blocks\.0 calls .*gelu.* the target's blocks\.0 calls .*silu"),
    "another reduction": (Shape(**BIG, mean=False), r"calls .*mean.* calls .*amax"),
    "another buffer": (Shape(**BIG, table=2.0), r"buffer table, which no checkpoint .*they differ by up to 0\.94"),
    "another constant": (Shape(**BIG, constant=2.0), r"aten\.(view|mul).* where the target has"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_correspond_is_named(case: str) -> None:
    shape, message = REFUSED[case]
    _, program = captured(Shape())
    _, target = captured(shape, seed=1)
    with pytest.raises(TargetError, match=message) as caught:
        progc.grow(program, target)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_target_of_another_kind() -> None:
    _, program = captured(Shape())
    with pytest.raises(TargetError, match=r"only in the source: .*; only in the target: .*") as caught:
        progc.grow(program, zoo.captured("own:conv")[1])
    assert "blocks.0.norm1" in str(caught.value) and "stem" in str(caught.value)


def test_a_width_that_cannot_be_exact_is_refused_before_anything_is_compared() -> None:
    """`table`, one number a token for all units, takes no factor, so that nothing can be padded."""
    _, program = captured(Shape())
    _, target = captured(Shape(dim=12, heads=3, hidden=(18, 18)))
    with pytest.raises(
        NotLosslessError, match="8 to 12 is not an integer factor, and aten.layer_norm .* table is the same"
    ):
        progc.grow(program, target)
    growth = grow_with_report(program, target, lossy=True)
    assert growth.report["lossless"] is False and growth.report["max_rel_diff"] > 0


def test_a_buffer_that_only_the_source_has_is_no_obstacle() -> None:
    class Plain(nn.Module):
        def __init__(self, dim: int, table: bool) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, dim), nn.Linear(dim, 2)
            if table:
                self.register_buffer("unused", torch.zeros(dim), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.tanh(self.up(x)))

    example = (torch.randn(2, 4),)
    program = progc.capture(Plain(5, True), example)
    grown = progc.grow(program, progc.capture(Plain(10, False), example))
    assert grown.tensors["up.weight"].shape == (10, 4)


def test_a_tensor_that_nothing_reads_has_no_known_growth() -> None:
    class Spare(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.up, self.down, self.spare = nn.Linear(4, dim), nn.Linear(dim, 2), nn.Linear(dim, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.tanh(self.up(x)))

    example = (torch.randn(2, 4),)
    message = r"spare\.weight \[3, 5\] -> \[3, 10\] \(no operation reads it, so how it grows is unknown\)"
    with pytest.raises(TargetError, match=message):
        progc.grow(progc.capture(Spare(5), example), progc.capture(Spare(10), example))


@pytest.mark.parametrize("shared", [2, pytest.param(4, marks=pytest.mark.slow)])  # by sizes: tests/growth/test_grow.py
def test_grouped_queries(shared: int) -> None:
    """Llama: query heads and key-value heads grow together, or the groups of one key-value head grow."""
    from transformers import LlamaConfig, LlamaForCausalLM

    module, program = zoo.captured("transformers:llama")
    options = {**zoo._LLAMA, "hidden_size": 64, "head_dim": 8, "num_attention_heads": 8}
    torch.manual_seed(1)
    reference = LlamaForCausalLM(LlamaConfig(**options | {"num_key_value_heads": shared}, use_cache=False)).eval()
    args, kwargs = program.example
    grown = progc.grow(program, progc.capture(reference, args, kwargs))
    assert_loads(reference, grown.state_dict(), module, args, kwargs)


def test_one_axis_that_has_two_sizes_in_the_target_is_named_with_the_operation() -> None:
    """Equal widths meet in a residual sum; where the widths differ, the class leaves the sum out."""

    class Steps(nn.Module):
        def __init__(self, *widths: int) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, widths[0]), nn.Linear(widths[-1], 2)
            pairs = zip(widths, widths[1:], strict=False)
            self.steps = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for step in self.steps:
                y = torch.tanh(step(x))
                x = x + y if x.shape == y.shape else y
            return self.head(x)

    example = (torch.randn(2, 4),)
    message = (
        r"steps\.0\.weight \[5, 5\] -> \[9, 6\] \(axis stem has one size in the source, 6 and 9 in the target\).*"
        r"; add calls aten\.add\.Tensor and the target's head calls aten\.linear"
    )
    with pytest.raises(TargetError, match=message):
        progc.grow(progc.capture(Steps(5, 5), example), progc.capture(Steps(6, 9), example))


def _edited(program: Program, edit: Callable[[Any], None]) -> Program:
    graph = copy_graph(program.graphs["eval"])
    edit({node.name: node for node in graph.nodes})
    return program.replace(graphs={**program.graphs, "eval": graph})


def _other_op(nodes: dict[str, Any]) -> None:
    nodes["gelu_1"].target = torch.ops.aten.relu.default
    nodes["gelu_1"].kwargs = {}


def _other_literal(nodes: dict[str, Any]) -> None:
    args = list(nodes["layer_norm_2"].args)
    args[4] = 1e-3
    nodes["layer_norm_2"].args = tuple(args)


def _other_operand(nodes: dict[str, Any]) -> None:
    nodes["linear_7"].replace_input_with(nodes["gelu_1"], nodes["gelu"])


def _other_tensor(nodes: dict[str, Any]) -> None:
    args = list(nodes["linear_1"].args)
    args[2] = nodes["linear_5"].args[2]
    nodes["linear_1"].args = tuple(args)


def _other_output(nodes: dict[str, Any]) -> None:
    nodes["output"].args = ((nodes["mean"],),)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_other_op, r"blocks\.1 calls aten\.gelu\.default and the target's blocks\.1 calls aten\.relu\.default"),
        (_other_literal, r"blocks\.1\.norm1: aten\.layer_norm\.default has .*1e-06.*0\.001"),
        (_other_operand, r"aten\.linear\.default has"),
        (_other_tensor, r"blocks\.0\.proj: .*'blocks\.0\.proj\.bias'.* the target has .*'blocks\.1\.proj\.bias'"),
        (_other_output, r"output"),
    ],
)
def test_a_planted_difference_is_found(edit: Callable[[Any], None], message: str) -> None:
    _, program = captured(Shape())
    assert list(differences(program, _edited(program, lambda nodes: None))) == []
    found = list(differences(program, _edited(program, edit)))
    assert found
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found[0])


def test_a_planted_buffer_and_a_planted_large_constant_are_found() -> None:
    _, program = captured(Shape(side=80, patch=16))
    name = next(
        name for name in program.tensors if name.startswith("_constants.") and program.tensors[name].numel() > 9
    )
    for changed, message in (("table", "buffer table"), (name, "where the target has")):
        tensor = program.tensors[changed].clone()
        tensor.view(-1)[-1] += 1e-3
        other = program.replace(tensors={**program.tensors, changed: tensor})
        assert message in next(differences(program, other))


class Staged(nn.Module):
    """Three chains in one container, with blocks between them that change the width."""

    def __init__(self, third: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Residual(4), Residual(4), nn.Linear(4, 8), Residual(8), Residual(8), nn.Linear(8, 6)
        ).extend(Residual(6) for _ in range(third))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x))


def test_two_chains_in_one_container_are_refused_where_their_blocks_have_other_numbers() -> None:
    small = progc.capture(Staged(1), (torch.randn(2, 4),))
    with pytest.raises(
        TargetError, match="in one container, which has 7 blocks in the source and 8 in .*Staged: the block numbers"
    ):
        grow_with_report(small, progc.capture(Staged(2), (torch.randn(2, 4),)))
    deeper = progc.apply(small, "grow-depth{to=features[0-1]:8},grow-depth{to=features[4-5]:9}")
    assert [chain.name for chain in deeper.chains] == ["features[0-2]", "features[4-6]", "features[8]"]
