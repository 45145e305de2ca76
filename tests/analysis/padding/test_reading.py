"""A graph seen along one axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import progc
from progc.analysis.padding.reading import Reading
from progc.ir.operations import op_name


class Joined(nn.Module):
    """Concatenations of an axis with itself, and with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.twice, self.head = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(16, 2), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.twice(torch.cat([a, a.tanh()], -1)) + self.head(torch.cat([a, self.b(x)], -1))


def test_only_a_concatenation_of_parts_that_grow_alike_grows_in_proportion() -> None:
    program = progc.capture(Joined(), (torch.randn(2, 6),))
    reading = Reading(program, "eval", program.axes["a"].atom)
    both, mixed = (node for node in reading.nodes.values() if op_name(node) == "cat")
    assert reading.places(both) == reading.places(mixed) == [1]
    assert reading.product(both, 1) and not reading.product(mixed, 1)
