"""Axis inference: what can be widened in any network, and why the rest cannot (docs/architecture.md)."""

from __future__ import annotations

from progc.analysis.axes.table import Axis, AxisTable, analyse

__all__ = ["Axis", "AxisTable", "analyse"]
