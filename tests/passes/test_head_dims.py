"""Head dims at sizes that are no multiple: uneven shares in one operand, times the root that attention divides by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progc.ir.program import Program
from tests.analysis.axes.growth import EXACT, attempt, difference, program_of, widen
from tests.analysis.padding.nets import Decoder

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Attention by `mix`, from packed or separate projections."""

    def __init__(self, mix: Scores, packed: bool) -> None:
        super().__init__()
        self.mix, self.packed = mix, packed
        self.o = nn.Linear(8, 3)
        if packed:
            self.qkv = nn.Linear(6, 24)
        else:
            self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(self.mix(q, k, v).transpose(1, 2).flatten(2))


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / 2.0).softmax(-1) @ v


MIXES: dict[str, Scores] = {
    "default scale": F.scaled_dot_product_attention,
    "own scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "written out": written_out,
}


def head_dims(program: Program) -> dict[str, int]:
    axes = [axis for axis in program.axes.growable if axis.meaning == "head dim"]
    assert any("a factor on one operand" in text for axis in axes for text in axis.conditions)
    return {axis.name: axis.size for axis in axes}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mix", MIXES)
def test_uneven_head_dims_are_exact(mix: str, packed: bool) -> None:
    program = program_of(Attention(MIXES[mix], packed), torch.randn(2, 5, 6))
    for more in (1, 2, 3):
        sizes = {name: size + more for name, size in head_dims(program).items()}
        for init in ("copy", "zero"):
            assert difference(program, widen(program, sizes, init)) < EXACT
            for name, size in sizes.items():
                assert attempt(program, {name: size}, init) == "exact"


def test_uneven_pairs_under_rotary_positions() -> None:
    program = program_of(Decoder(), torch.tensor([[1, 2, 3, 0]]))
    for name, size in head_dims(program).items():
        assert attempt(program, {name: size + 1}) == "exact"


def test_shares_do_not_pass_an_activation() -> None:
    """One factor for all copies would, and is exact where all units have as many."""
    positive = Attention(lambda q, k, v: written_out(F.relu(q), F.relu(k), v), False)
    program = program_of(positive, torch.randn(2, 5, 6))
    (name,) = [axis.name for axis in program.axes.growable if any("one operand" in text for text in axis.conditions)]
    assert attempt(program, {name: 8}) == "exact"
    assert "4 to 6 is not an integer factor, 4 and 8 are" in attempt(program, {name: 6})
