"""Axis inference: what can be widened in any network, and why the rest cannot (docs/architecture.md)."""

from __future__ import annotations

from progc.analysis.axes.table import Axis, AxisTable, axes_of

__all__ = ["Axis", "AxisTable", "axes_of"]
