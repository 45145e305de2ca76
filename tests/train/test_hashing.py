"""One hash for all that trains: what changes it, what does not, and ranks that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.errors import CheckError
from progc.train import boundary
from progc.train.boundary import check_same, digest


def made(reverse: bool = False) -> tuple[nn.Module, torch.optim.Optimizer, progc.EMA]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters[::-1] if reverse else parameters, lr=0.1)
    ema = progc.EMA(module, decays=(0.9,))
    module(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    ema.update(module)
    return module, optimizer, ema


def first(optimizer: torch.optim.Optimizer) -> Any:
    return next(iter(optimizer.state.values()))


CHANGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "weight": lambda module, optimizer, ema: module[0].weight.data[0, 0].add_(1e-6),
    "buffer": lambda module, optimizer, ema: module[1].running_mean.add_(1e-6),
    "trainable": lambda module, optimizer, ema: module[0].weight.requires_grad_(False),
    "state": lambda module, optimizer, ema: first(optimizer)["exp_avg_sq"].mul_(1.001),
    "step": lambda module, optimizer, ema: first(optimizer)["step"].add_(1),
    "rate": lambda module, optimizer, ema: optimizer.param_groups[0].update(lr=0.2),
    "rate as a tensor": lambda module, optimizer, ema: optimizer.param_groups[0].update(lr=torch.tensor(0.2)),
    "betas": lambda module, optimizer, ema: optimizer.param_groups[0].update(betas=(0.9, 0.99)),
    "average": lambda module, optimizer, ema: next(iter(ema.tensors[0.9].values())).add_(1e-6),
    "updates": lambda module, optimizer, ema: setattr(ema, "num_updates", 7),
    "member": lambda module, optimizer, ema: optimizer.param_groups[0]["params"].pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_part_counts(change: str) -> None:
    parts = made()
    before = digest(*parts)
    assert before == digest(*parts) and len(before) == 64
    with torch.no_grad():
        CHANGES[change](*parts)
    assert digest(*parts) != before


def test_the_order_of_an_optimizer_does_not_count() -> None:
    assert digest(*made()) == digest(*made(reverse=True))


def test_two_rates_given_as_tensors_are_two() -> None:
    """Options of a group need not be numbers."""
    found = set()
    for rate in (0.1, 0.2):
        module, optimizer, _ = made()
        optimizer.param_groups[0]["lr"] = torch.tensor(rate)
        found.add(digest(module, optimizer, None))
    assert len(found) == 2


def test_ranks_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_same("a")  # alone

    def gather(found: list[Any], own: str) -> None:
        found[:] = ["a", "b", "a", "c"]

    monkeypatch.setattr(boundary.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(boundary.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(boundary.dist, "all_gather_object", gather)
    with pytest.raises(CheckError, match=r"ranks differ .*: 1, 3;"):
        check_same("a")
