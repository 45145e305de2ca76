"""Factors that a class computes from its sizes: the target's are taken and parameters make up, or it is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import TargetError
from progc.growth.grow import grow_with_report
from progc.growth.target.constants import take_constants
from tests import nets, zoo
from tests.grown import assert_loads


@dataclasses.dataclass(frozen=True)
class Habit:
    """Where a factor of the width stands."""

    dim: int = 8
    heads: int = 2
    scale: str = "literal"
    embed: str = "none"
    inputs: float = 1.0
    shift: float = 0.0


class Attention(nn.Module):
    def __init__(self, habit: Habit) -> None:
        super().__init__()
        self.habit, self.factor = habit, (habit.dim // habit.heads) ** -0.5
        self.qkv, self.proj = nn.Linear(habit.dim, 3 * habit.dim), nn.Linear(habit.dim, habit.dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        heads = self.habit.heads
        q, k, v = self.qkv(x).view(batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.habit.scale == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.factor)
        elif self.habit.scale == "query":
            mixed = ((q * self.factor) @ k.transpose(-2, -1)).softmax(-1) @ v
        elif self.habit.scale == "divide":
            mixed = (q @ k.transpose(-2, -1) / (dim // heads) ** 0.5).softmax(-1) @ v
        else:
            mixed = (q @ k.transpose(-2, -1) * self.factor).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Net(nn.Module):
    scale: Tensor

    def __init__(self, habit: Habit) -> None:
        super().__init__()
        self.habit = habit
        self.stem, self.norm = nn.Linear(5, habit.dim), nn.LayerNorm(habit.dim)
        self.attention, self.head = Attention(habit), nn.Linear(habit.dim, 3)
        if habit.embed == "buffer":
            self.register_buffer("scale", torch.tensor(habit.dim**0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.tanh(x * self.habit.inputs))
        if self.habit.embed == "literal":
            x = x * self.habit.dim**0.5
        if self.habit.embed == "buffer":
            x = x * self.scale
        return self.head(x + self.attention(self.norm(x)) + self.habit.shift).mean(1)


def captured(habit: Habit) -> tuple[nn.Module, progc.Program]:
    torch.manual_seed(0)
    model = zoo.perturb(Net(habit)).eval()
    return model, progc.capture(model, (torch.randn(2, 4, 5),))


@pytest.mark.parametrize("embed", ["none", "literal", "buffer"])
@pytest.mark.parametrize("scale", ["literal", "query", "divide", "sdpa"])
def test_a_factor_of_the_width_is_met_by_parameters(scale: str, embed: str) -> None:
    module, program = captured(Habit(scale=scale, embed=embed))
    reference, target = captured(Habit(dim=24, heads=2, scale=scale, embed=embed))
    growth = grow_with_report(program, target)
    assert growth.report["lossless"] is True and growth.report["max_rel_diff"] < 1e-6
    assert any("in the target; parameters before it absorb the factor" in note for note in growth.plan.notes)
    assert_loads(reference, growth.program.state_dict(), module, *program.example, tolerance=1e-6)
    grown = growth.plan.apply(program.tensors)
    assert all(torch.equal(grown[name], tensor) for name, tensor in growth.program.state_dict().items())


def test_the_same_factor_is_left_alone() -> None:
    _, program = captured(Habit())
    result = take_constants(program, captured(Habit())[1])
    assert result.program is program and not result.changed


def test_einsum_attention_with_wider_heads() -> None:
    module, program = zoo.captured("own:einsum")
    args, kwargs = program.example
    reference = nets.EinsumTransformer(dim=48, heads=3, hidden=40).eval()
    grown = progc.grow(program, progc.capture(reference, args, kwargs))
    assert_loads(reference, grown.state_dict(), module, args, kwargs, tolerance=1e-6)


def test_a_factor_that_no_parameter_can_take_is_named_with_both_numbers() -> None:
    message = (
        r"aten\.mul\.Tensor has 2 where the target has 4, and no parameter can absorb the factor 0\.5: .*x is an in"
    )
    with pytest.raises(TargetError, match=message):
        progc.grow(captured(Habit(inputs=2.0))[1], captured(Habit(dim=16, heads=4, inputs=4.0))[1])


def test_a_factor_of_another_sign_is_refused() -> None:
    with pytest.raises(TargetError, match="one of the two is zero, or they differ in sign"):
        progc.grow(captured(Habit(inputs=2.0))[1], captured(Habit(inputs=-2.0))[1])


def test_a_constant_that_is_added_is_no_factor() -> None:
    with pytest.raises(TargetError, match=r"aten\.add\.Tensor has .*0\.5.* where the target has .*0\.25"):
        progc.grow(captured(Habit(shift=0.5))[1], captured(Habit(dim=16, heads=4, shift=0.25))[1])
