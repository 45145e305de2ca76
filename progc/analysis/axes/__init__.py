"""Axis inference: which dims of a network can be widened, and why the others cannot (docs/architecture.md).

`axes_of` walks the graphs of a program with the rules in `rules` and returns a table of axes. `custom` holds the
building blocks that users write rules with. May import `ir` and below.
"""

from __future__ import annotations

from progc.analysis.axes.table import Axis, AxisTable, axes_of

__all__ = ["Axis", "AxisTable", "axes_of"]
