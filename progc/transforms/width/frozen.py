"""Axes that sizes for the whole network leave alone, because only frozen parameters produce their units."""

from __future__ import annotations

from progc.analysis.axes import axes_of
from progc.ir.program import Program
from progc.transforms.freezing.setting import fixed_parameters


def held_axes(program: Program) -> frozenset[str]:
    """Returns the names of the axes whose producers were all frozen when the program was captured.

    An example is a teacher inside the module: if it were made smaller, nothing would train the lost values again. The
    result is empty if no residual width would be left to vary. Then the network itself was captured frozen, as for a
    linear probe.
    """
    fixed = fixed_parameters(program)
    if not fixed:
        return frozenset()
    table = axes_of(program)
    found, free = set(), False
    for axis in table.axes:
        makers = {
            program.tied.get(span.tensor, span.tensor) for span in axis.spans
            if "producer" in span.sides and program.specs[span.tensor].kind == "parameter"
        }  # fmt: skip
        if makers and makers <= fixed:
            found.add(axis.name)
        elif axis.growable and axis.meaning == "residual width":
            free = True
    residual = any(axis.meaning == "residual width" for axis in table.axes)
    return frozenset(found) if free or not residual else frozenset()
