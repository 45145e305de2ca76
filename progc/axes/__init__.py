"""Axis inference: what can be widened in any network, and why the rest cannot (design.md section 4)."""

from __future__ import annotations

from progc.axes.table import Axis, AxisTable, analyse

__all__ = ["Axis", "AxisTable", "analyse"]
