"""Sweeps over many cases: `make test` runs some of them, `make test-all` all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def some(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Values for `pytest.mark.parametrize`; those that are not in `quick` are slow.

    Raises:
        AssertionError: one of `quick` is not among the values.
    """
    import pytest  # bench/ imports tests/zoo.py, and does not need it

    values = list(values)
    assert all(value in values for value in quick), [value for value in quick if value not in values]
    return [pytest.param(value, marks=[] if value in quick else [pytest.mark.slow]) for value in values]
