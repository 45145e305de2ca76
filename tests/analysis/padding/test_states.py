"""States of padded values: what a state says about the new units holds for sums and products, on numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from progc.analysis.padding.states import PadState, joined, multiplied

GAINS = {"g": torch.tensor([0.5, 2.0, 1.5, 3.0], dtype=torch.float64)}
STATES = [
    PadState(0, "zero"), PadState(0, "mean"), PadState(0, "mean", ("g",)), PadState(0, "const"),
    PadState(0, "one", ("g",)), PadState(0, "free"),
]  # fmt: skip


def weighted(old: Tensor, state: PadState) -> Tensor:
    for name in state.weights:
        old = old * GAINS[name]
    return old.mean()


def drawn(state: PadState) -> tuple[Tensor, Tensor]:
    """Four old units in this state, and what the new ones hold."""
    old, new = torch.randn(4, dtype=torch.float64), torch.randn((), dtype=torch.float64)
    if state.new == "zero":
        return old, torch.zeros_like(new)
    if state.new == "mean":
        return old, weighted(old, state)
    if state.new == "const":
        return new.expand(4), new
    return (GAINS["g"], torch.ones_like(new)) if state.new == "one" else (old, new)


def holds(state: PadState, old: Tensor, new: Tensor) -> bool:
    if state.new == "mean":
        return torch.allclose(new, weighted(old, state))
    if state.new == "const":
        return torch.allclose(new, old)
    if state.new == "one":
        return bool(new == 1) and torch.equal(old, GAINS[state.weights[0]])
    return state.new == "free" or not new.any()


@pytest.mark.parametrize("sum_of", [True, False], ids=["sum", "product"])
def test_a_state_says_what_the_numbers_are(sum_of: bool) -> None:
    said = set()
    for a, b in itertools.product(STATES, repeat=2):
        (old_a, new_a), (old_b, new_b) = drawn(a), drawn(b)
        state = joined(a, b) if sum_of else multiplied(a, b)
        assert state is not None
        old, new = (old_a + old_b, new_a + new_b) if sum_of else (old_a * old_b, new_a * new_b)
        assert holds(state, old, new), (a, b, state)
        said.add(state.new)
    assert said == {"zero", "mean", "const", "free"}


def test_values_with_different_factors_have_no_sum() -> None:
    assert joined(PadState(1, "mean"), PadState(0, "mean")) is None
    assert multiplied(PadState(1, "mean"), PadState(-2, "const")) == PadState(-1, "mean")
