"""Global random number generators: kept, seeded, and the same on every device."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from progc.ir.random_state import kept_random_states, seed_everything, seeded


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_states_are_kept_after_an_error() -> None:
    seed_everything(3)
    expected = draws()
    seed_everything(3)
    with pytest.raises(ZeroDivisionError), kept_random_states():
        assert draws() == expected
        seed_everything(9)
        draws()
        raise ZeroDivisionError
    assert draws() == expected


@pytest.mark.parametrize("seed", [0, 7, -1, 2**40, 2**64 - 1, 2**70])
def test_a_block_draws_from_its_seed(seed: int) -> None:
    seed_everything(3)
    with seeded(seed):
        first = draws()
    with seeded(seed):
        assert draws() == first
    after = draws()
    seed_everything(3)
    assert draws() == after != first


def test_seeds_give_the_numbers_of_the_libraries() -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = draws()
    with seeded(5):
        assert draws() == expected


@pytest.mark.parametrize(("kind", "count"), [("cuda", 2), ("mps", 1)])
def test_states_of_accelerators_are_kept(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([index]) for index in range(count)]
    before = [state.clone() for state in states]
    indexed = SimpleNamespace(
        get_rng_state=lambda index: states[index].clone(),
        set_rng_state=lambda state, index: states.__setitem__(index, state),
        manual_seed_all=lambda seed: [state.fill_(seed) for state in states],
    )
    single = SimpleNamespace(
        get_rng_state=lambda: states[0].clone(),
        set_rng_state=lambda state: states.__setitem__(0, state),
        manual_seed=lambda seed: states[0].fill_(seed),
    )
    device: Any = indexed if kind == "cuda" else single
    device.is_initialized = lambda: started
    started = True
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch, "get_device_module", lambda accelerator: device)
    with seeded(11):
        assert all(int(state) == 11 for state in states)
    assert all(torch.equal(*pair) for pair in zip(states, before, strict=True))
    with kept_random_states(accelerator=False):
        states[0] += 5
    assert int(states[0]) == 5
    started = False
    with seeded(12):  # nothing is seeded that could not be put back
        assert int(states[0]) == 5
