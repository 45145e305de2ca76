"""Sizes as users write them: what each axis gets, and refusals that name the nearest sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import TargetError
from progc.growth.grow import grow_with_report
from progc.ir.check import compare
from progc.models.sizes import parse_sizes
from progc.transforms.width.sizes import axis_sizes, fitted_sizes, widths
from tests import nets
from tests.zoo import captured


class Normed(nn.Module):
    """Residual conv net whose channels a GroupNorm cuts into groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8)
        self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.conv(F.silu(self.norm(x)))).mean((2, 3)))


class Transformer(nn.Module):
    """Pre-norm attention: width 12, three heads of four."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 36)
        self.out, self.head = nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


@pytest.fixture(scope="module")
def normed() -> progc.Program:
    return progc.capture(Normed(), (torch.randn(2, 3, 6, 6),))


@pytest.fixture(scope="module")
def transformer() -> progc.Program:
    return progc.capture(Transformer(), (torch.randn(2, 6, 5),))


def refusal(program: progc.Program, sizes: str) -> str:
    with pytest.raises(TargetError) as caught:
        axis_sizes(program, parse_sizes(sizes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_width_is_that_of_the_whole_dim_where_a_norm_cuts_it(normed: progc.Program) -> None:
    assert widths(normed.axes) == [8]
    growth = grow_with_report(normed, parse_sizes("width=16"))
    assert growth.program.tensors["stem.weight"].shape[0] == 16
    assert growth.report["lossless"] and compare(normed, growth.program, seed=0).max_rel < 1e-9
    assert axis_sizes(normed, parse_sizes("width=16")) == axis_sizes(normed, parse_sizes("width*2"))
    assert axis_sizes(normed, parse_sizes("width=8")) == {}


def test_a_width_that_a_norm_forbids_names_the_nearest(normed: progc.Program) -> None:
    assert refusal(normed, "width=13").endswith("a product of whole parts; nearest widths: 12, 14")
    assert "the residual width is 8, and 7 is smaller" in refusal(normed, "width=7")


@pytest.mark.parametrize("sizes", ["width=12", "width*1.5"])
def test_groups_of_a_norm_grow_where_the_channels_inside_cannot(normed: progc.Program, sizes: str) -> None:
    growth = grow_with_report(normed, parse_sizes(sizes))
    assert growth.program.tensors["conv.weight"].shape[:2] == (12, 12)
    groups = [node.args[1] for node in growth.program.graphs["eval"].nodes if "group_norm" in str(node.target)]
    assert groups == [6]
    assert growth.report["lossless"] and compare(normed, growth.program, seed=0).max_rel < 1e-9


def test_what_does_not_come_out_whole_is_rounded_and_said() -> None:
    program = progc.capture(nets.ConvNet(), (torch.randn(2, 3, 8, 8),))
    sizes, notes = fitted_sizes(program, parse_sizes("width*1.3"))
    for name, size in sizes.items():
        assert abs(size - 1.3 * program.axes[name].size) <= 0.5
    assert notes and all("rounded" in note for note in notes)
    assert fitted_sizes(program, parse_sizes("width*2"))[1] == []
    growth = grow_with_report(program, parse_sizes("width*1.3"))
    assert growth.report["lossless"] and set(notes) <= set(growth.plan.notes)


@pytest.mark.parametrize("sizes", ["width=17", "width*1.4"])
def test_a_width_between_heads_names_the_nearest(transformer: progc.Program, sizes: str) -> None:
    assert "sizes are integers of at least 1; nearest widths: 1" in refusal(transformer, sizes)


def test_head_dims_grow_where_the_number_of_heads_would_not_be_whole(transformer: progc.Program) -> None:
    for text, heads, dim in (("width*1.5", 3, 6), ("width=16", 4, 4), ("width*2", 6, 4)):
        sizes = axis_sizes(transformer, parse_sizes(text))
        size = {axis.meaning: sizes.get(axis.name, axis.size) for axis in transformer.axes.growable}
        assert (size["heads"], size["head dim"]) == (heads, dim)


def test_heads_that_do_not_divide_the_width_name_the_nearest(transformer: progc.Program) -> None:
    assert refusal(transformer, "width=24,heads=5").endswith("nearest widths: 20, 25; nearest heads: 4, 6")
    assert "the number of heads is 3, and 2 is smaller" in refusal(transformer, "heads=2")


def test_heads_and_width_decide_the_head_dim(transformer: progc.Program) -> None:
    sizes = axis_sizes(transformer, parse_sizes("width*2,heads=3"))
    grown = {transformer.axes[name].meaning: (transformer.axes[name].size, size) for name, size in sizes.items()}
    assert grown["head dim"] == (4, 8) and grown["residual width"] == (12, 24) and "heads" not in grown


def test_the_narrowest_stream_counts_where_stages_differ() -> None:
    program = progc.capture(nets.ConvNet(), (torch.randn(2, 3, 8, 8),))
    base = widths(program.axes)[0]
    doubled = axis_sizes(program, parse_sizes(f"width={2 * base}"))
    assert doubled == axis_sizes(program, parse_sizes("width*2"))


def test_unknown_keys_and_networks_without_axes(transformer: progc.Program) -> None:
    assert "did you mean width" in refusal(transformer, "widht=24")
    fixed = progc.capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    assert "no axis that can grow" in refusal(fixed, "width=8")
    assert "no head axis" in refusal(fixed, "heads=8")


def test_a_residual_width_that_is_an_output_is_no_reason_to_widen_something_else() -> None:
    program = captured("transformers:bert")[1]
    with pytest.raises(TargetError, match=r"width=64: the residual width .* \(size 32\) cannot grow: it is an output"):
        axis_sizes(program, parse_sizes("width=64"))


def test_a_layer_that_adds_to_its_own_output_is_no_residual_stream() -> None:
    """Tanh-GELU is x + 0.04 x^3, rotary queries are q cos + rotated q sin."""
    assert widths(captured("transformers:gpt2")[1].axes) == [32]
    assert widths(captured("transformers:llama")[1].axes) == [32]


class Multiplied(nn.Module):
    """A depthwise convolution that makes two channels of each, added to a stream of that width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.conv, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.stem(x))
        return self.head((x + self.conv(x)).mean((2, 3)))


def test_a_channel_multiplier_stays() -> None:
    program = progc.capture(Multiplied(), (torch.randn(2, 3, 5, 5),))
    grown = grow_with_report(program, parse_sizes("width*2"))
    assert grown.program.tensors["twice.weight"].shape == (16, 1, 3, 3)
    assert grown.program.tensors["conv.weight"].shape == (16, 16, 1, 1)
    assert grown.report["lossless"] and grown.report["max_rel_diff"] < 1e-9
    assert {axis.meaning for axis in program.axes.growable} >= {"channel multiplier"}
