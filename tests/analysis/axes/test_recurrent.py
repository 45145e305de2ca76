"""LSTM, GRU and plain recurrent layers: every axis grows, by any number of units, in both modes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.growth.grow import grow_with_report
from progc.ir.check import compare_train
from progc.models.sizes import parse_sizes
from tests.zoo import perturb

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: str, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.into = nn.Linear(5, 6)
        self.layer = LAYERS[kind](6, 4, num_layers=layers, bidirectional=bidirectional, batch_first=True)
        self.head = nn.Linear(8 if bidirectional else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.into(x))[0])


@pytest.mark.parametrize("kind,layers,bidirectional", list(itertools.product(LAYERS, (1, 2), (False, True))))
def test_a_recurrent_layer_grows_exactly(kind: str, layers: int, bidirectional: bool) -> None:
    module = perturb(Recurrent(kind, layers, bidirectional))
    program = progc.capture(module, (torch.randn(2, 7, 5),))
    assert not program.axes.unknown and len(program.axes.growable) == 2
    for text, init in itertools.product(("width*2", "width*1.5"), ("copy", "zero")):
        growth = grow_with_report(program, parse_sizes(text), inits={"width": init})
        assert growth.plan.lossless and growth.report["max_rel_diff"] < 1e-12
        assert compare_train(program, growth.program, seed=0).max_rel < 1e-12
        hidden = 8 if text == "width*2" else 6
        grown = Recurrent(kind, layers, bidirectional)
        grown.into, grown.head = nn.Linear(5, 12 if hidden == 8 else 9), nn.Linear(hidden * (1 + bidirectional), 3)
        size = grown.into.out_features
        grown.layer = LAYERS[kind](size, hidden, num_layers=layers, bidirectional=bidirectional, batch_first=True)
        grown.load_state_dict(growth.program.state_dict())
        x = torch.randn(2, 7, 5, dtype=torch.float64)
        assert torch.allclose(grown.double()(x), module.double()(x), atol=1e-12)
        module.float()


def test_projections_are_not_known() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.layer, self.head = nn.Linear(5, 6), nn.LSTM(6, 4, proj_size=3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.into(x))[0])

    program = progc.capture(Projected(), (torch.randn(7, 2, 5),))
    assert not program.axes.growable and "aten.lstm" in program.axes.unknown


class Residual(nn.Module):
    """A recurrent branch behind a LayerNorm."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.into, self.norm, self.out, self.last = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(8, 6), nn.LayerNorm(6)
        self.layer, self.head = LAYERS[kind](6, 4, bidirectional=True, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.head(self.last(x + self.out(self.layer(self.norm(x))[0])))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_recurrent_branch_behind_a_norm_is_padded(kind: str) -> None:
    program = progc.capture(perturb(Residual(kind)).double(), (torch.randn(2, 7, 5, dtype=torch.float64),))
    growth = grow_with_report(program, parse_sizes("width*1.5"))
    assert growth.plan.lossless and growth.report["max_rel_diff"] < 1e-12
    assert {axis.kind for axis in growth.plan.axes} == {"copy", "pad"}
    assert compare_train(program, growth.program, seed=0).max_rel < 1e-12
