"""grow-width: options, what is left behind, symmetry breaking, and a plan that replays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError, PassOptionError, TargetError
from progc.ir.check import compare, compare_train
from progc.ir.graphs import fingerprint
from progc.ir.module import ProgramModule
from progc.lift.lift import Lift
from progc.passes.grow_width import GrowWidth
from tests import nets
from tests.analysis.axes.growth import EXACT, attempt, difference, program_of, widen


class Attention(nn.Module):
    """Pre-norm attention block with a gated MLP, plain layers only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.o, self.up, self.down = nn.Linear(12, 12), nn.Linear(12, 20), nn.Linear(10, 12)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (layer(self.norm(x)).unflatten(2, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        gate, value = self.up(x).chunk(2, -1)
        return self.head(self.last(x + self.down(F.silu(gate) * value)).mean(1))


@pytest.fixture(scope="module")
def attention() -> progc.Program:
    return program_of(Attention(), torch.randn(2, 6, 5))


@pytest.mark.parametrize("init", ["copy", "zero"])
def test_every_axis_of_a_transformer_grows_alone_and_together(attention: progc.Program, init: str) -> None:
    growable = attention.axes.growable
    assert {axis.meaning for axis in growable} >= {"residual width", "heads", "head dim", "hidden width"}
    for axis in growable:
        assert attempt(attention, {axis.name: 2 * axis.size}, init) == "exact"
        if not axis.conditions:
            assert attempt(attention, {axis.name: axis.size + 1}, init) == "exact"
    assert attempt(attention, {axis.name: 3 * axis.size for axis in growable}, init) == "exact"


def test_train_mode_and_statistics_of_a_conv_net_stay_exact() -> None:
    program = program_of(nets.ConvNet(), torch.randn(3, 3, 8, 8))
    grown = GrowWidth(width="*2").run(program).program
    assert compare_train(program, grown, seed=1).max_rel < EXACT
    assert grown.tensors["stem_norm.running_var"].shape == (16,)
    assert difference(program, grown) < EXACT


def test_growing_twice_is_exact(attention: progc.Program) -> None:
    once = GrowWidth(width="*2").run(attention).program
    assert difference(attention, GrowWidth(width="*2", seed=5).run(once).program) < EXACT


def test_the_input_stays_and_runs_repeat(attention: progc.Program) -> None:
    before = fingerprint(attention)
    weights = {name: tensor.clone() for name, tensor in attention.tensors.items()}
    first, second = (GrowWidth(width="*2").run(attention) for _ in range(2))
    assert fingerprint(attention) == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in attention.tensors.items())
    assert all(torch.equal(first.program.tensors[n], t) for n, t in second.program.tensors.items())
    other = GrowWidth(width="*2", seed=1).run(attention).program
    assert any(not torch.equal(first.program.tensors[n], t) for n, t in other.tensors.items())


def test_the_lift_replays_from_json(attention: progc.Program) -> None:
    result = GrowWidth(width="*2").run(attention)
    assert result.lift is not None
    again = Lift.from_json(result.lift.to_json()).apply(attention.tensors)
    assert all(torch.equal(tensor, again[name]) for name, tensor in result.program.tensors.items())


@pytest.mark.parametrize("init", ["copy", "zero"])
def test_no_copy_stays_equal_and_nothing_stays_dead(attention: progc.Program, init: str) -> None:
    grown = GrowWidth(width="*2", init=init).run(attention).program
    module = ProgramModule(grown)
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    x = torch.randn(4, 6, 5, dtype=torch.float64)[:2]
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        if name != "k.bias":  # adds the same to every score of a query: softmax takes it out again
            assert bool(
                (parameter.grad.abs().flatten(1).sum(1) > 0).all()
                if parameter.dim() > 1
                else (parameter.grad != 0).all()
            ), name
    weight = dict(module.named_parameters())["up.weight"]
    assert len(torch.unique(weight, dim=0)) == len(weight)


def test_random_units_are_not_called_lossless(attention: progc.Program) -> None:
    result = GrowWidth(width="*2", init="random").run(attention)
    assert result.lossless is False and compare(attention, result.program, seed=0).max_rel > 1e-3


def test_refusals(attention: progc.Program) -> None:
    with pytest.raises(TargetError, match="did you mean"):
        GrowWidth(axes=("embd:24",)).run(attention)
    with pytest.raises(PassOptionError, match="name:size"):
        GrowWidth(axes=("embed",)).run(attention)
    with pytest.raises(TargetError, match="smaller"):
        widen(attention, {"embed": 6})
    conv = program_of(nets.FlatMixer(), torch.randn(2, 3, 16, 16))
    stream = next(axis for axis in conv.axes.growable if axis.meaning == "residual width")
    with pytest.raises(NotLosslessError, match=f"are {stream.size} and {2 * stream.size}"):
        widen(conv, {stream.name: stream.size + 2})
    assert GrowWidth().run(attention).changed is False
    assert GrowWidth(axes=("embed:12",)).run(attention).program is attention
