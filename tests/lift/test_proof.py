"""The float64 check of a growth: what it sees, and how close lossless has to be."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

import progc
from progc.ir.check import compare
from progc.ir.program import Program
from progc.lift.entry import Scale, TensorLift
from progc.lift.lift import Lift
from progc.lift.revert import ROUNDED, TOLERANCE, measure, tolerance
from progc.passes.grow_width import GrowWidth


class ZeroHead(nn.Module):
    """Untrained as many networks are: the head starts at zero and hides everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


def source() -> Program:
    return progc.capture(ZeroHead(), (torch.randn(2, 4),))


def test_a_head_of_zeros_does_not_hide_a_wrong_growth() -> None:
    program = source()
    right = GrowWidth(axes=("hidden:12",)).run(program)
    assert right.lift is not None
    assert compare(program, right.program, seed=0).silent
    assert measure(program, right.program, [right.lift], seed=0).max_rel < TOLERANCE
    # Without its shares the head sums twice as many units; with a weight of zero that makes no difference.
    wrong = dataclasses.replace(
        right.lift, tensors=tuple(dataclasses.replace(entry, splits=()) for entry in right.lift.tensors)
    )
    grown = right.program.replace(tensors=wrong.apply(program.tensors))
    assert compare(program, grown, seed=0).max_rel == 0.0
    assert measure(program, grown, [wrong], seed=0).max_rel > 0.1


def test_the_source_keeps_its_weights() -> None:
    program = source()
    before = {name: tensor.clone() for name, tensor in program.tensors.items()}
    grown = GrowWidth(axes=("hidden:12",)).run(program)
    assert grown.lift is not None
    measure(program, grown.program, [grown.lift], seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.tensors.items())


def test_only_factors_that_round_loosen_the_tolerance() -> None:
    def lift(*values: float) -> Lift:
        return Lift((TensorLift("w", "w", scales=(Scale(0, values),)),))

    assert tolerance([]) == tolerance([lift(1.0, 0.0, 0.5)]) == TOLERANCE
    assert tolerance([lift(1.0), lift(2**-0.5)]) == ROUNDED
