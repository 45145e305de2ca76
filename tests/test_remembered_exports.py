"""What is remembered of an export is used only for a module that export cannot tell from the first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import progc
from tests.remembered_exports import EXPORTS


class Small(nn.Module):
    """Its forward depends on an attribute, on a constant tensor and on a flag of a parameter."""

    def __init__(self, width: int = 4, slope: float = 2.0, mask: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.slope = nn.Linear(4, width), nn.Linear(width, 4), slope
        self.mask = torch.full((width,), mask)
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) * self.slope) * self.mask + self.shift)


def tied(model: Small) -> None:
    model.b.weight = model.a.weight


def frozen(model: Small) -> None:
    model.a.weight.requires_grad_(False)


@pytest.fixture(autouse=True)
def _from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EXPORTS, "known", type(EXPORTS.known)())
    monkeypatch.setattr(EXPORTS, "used", 0)
    EXPORTS.use(True)  # also in `make test-all`; the next test sets it anew


def captured(model: nn.Module) -> progc.Program:
    return progc.capture(model, (torch.randn(2, 4),))


def test_a_module_with_other_weights_takes_the_export_and_keeps_its_weights() -> None:
    x = torch.randn(3, 4)
    captured(Small())
    model = Small()
    model.shift.fill_(0.5)
    program = captured(model)
    assert EXPORTS.used == 2  # eval and train
    assert program.tensors["a.weight"] is model.a.weight and program.tensors["shift"] is model.shift
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize(
    "change", [{"width": 6}, {"slope": 3.0}, {"mask": 0.5}, tied, frozen], ids=["width", "slope", "mask", "tie", "flag"]
)
def test_another_content_is_exported(change: dict[str, Any] | Callable[[Small], None]) -> None:
    captured(Small())
    model = Small(**change) if isinstance(change, dict) else Small()
    if not isinstance(change, dict):
        change(model)
    x = torch.randn(3, 4)
    program = captured(model)
    assert EXPORTS.used == 0 and torch.equal(program.module()(x), model(x))


def test_a_method_that_is_patched_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    captured(Small())
    monkeypatch.setattr(Small, "forward", lambda self, x: self.b(self.a(x)))
    model, x = Small(), torch.randn(3, 4)
    assert torch.equal(captured(model).module()(x), model(x)) and EXPORTS.used == 0


def test_classes_that_are_made_by_a_call_are_another_class_each() -> None:
    def local(slope: float) -> nn.Module:
        class Local(Small):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * slope

        return Local()

    x = torch.randn(3, 4)
    for slope in (1.0, 2.0):
        model = local(slope)
        assert torch.equal(captured(model).module()(x), model(x))
    assert EXPORTS.used == 0


def test_what_cannot_be_told_is_exported() -> None:
    for slope in (1.0, 2.0):
        model = Small()
        model.activation = lambda value, slope=slope: value * slope  # type: ignore[assignment]
        captured(model)
    assert EXPORTS.used == 0 and not EXPORTS.known
