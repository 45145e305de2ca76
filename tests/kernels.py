"""Custom ops for the tests: defined by name, with rules that are gone after the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from progc.analysis.axes import registry
from progc.files import python as userfile


def set_rules_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes registrations after a test, and imports files again, since a cached module would not register twice."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(userfile, "_loaded", {})


def define(name: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor] | None = None) -> Any:
    """A custom op whose shape rule is the kernel itself unless one is given."""
    op = torch.library.custom_op(name, mutates_args=())(kernel)
    op.register_fake(fake or kernel)
    return op
