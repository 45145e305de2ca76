"""States of padded values: the power of `s` on the old units, and the contents of the new units.

The states form a small lattice (docs/growth.md, section 0.1), with `free` at the top: nothing is known. Powers are
integers, so that equality of factors is exact: the mean of squares over a padded axis has `s ** 2` from the values and
`s ** -2` from the number of units.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import fx

from progc.ir.operations import DemandRefused
from progc.ir.program import Mode

New = Literal["zero", "mean", "const", "one", "free", "any"]


class PaddingRefused(DemandRefused):
    """An axis cannot be padded exactly; the message names the operation and the reason."""


class Differs(PaddingRefused):
    """Two operands have different factors, and the state of one of them is still open."""

    def __init__(self, message: str, mode: Mode, value: fx.Node, power: int) -> None:
        super().__init__(message)
        self.mode, self.value, self.power = mode, value, power


@dataclasses.dataclass(frozen=True)
class PadState:
    """The state of a value for one padded axis.

    Attributes:
        power: old units are multiplied by `s ** power`.
        new: contents of the new units. `zero`; `mean`: `s ** power` times the mean over the old units, each times its
            entries of the tensors in `weights`; `const`: all units of the axis are equal, including the new ones, or
            the value does not have the axis; `one`: a gain (named in `weights`) that is 1 for new units; `free`: any
            finite value. `any` occurs in demands only.
        weights: sorted canonical names of tensors.
    """

    power: int
    new: New
    weights: tuple[str, ...] = ()


ALIKE = PadState(0, "const")
"""The state of a value that padding does not change."""


def joined(a: PadState, b: PadState) -> PadState | None:
    """Returns the state of a sum or a concatenation; None if the factors differ."""
    if a.power != b.power:
        return None
    kinds = {a.new, b.new}
    if a == b and a.new != "one":
        return a
    if kinds == {"mean", "const"} and not a.weights and not b.weights:
        return PadState(a.power, "mean")
    return PadState(a.power, "free")


def multiplied(a: PadState, b: PadState) -> PadState:
    """Returns the state of an elementwise product."""
    power = a.power + b.power
    if "zero" in (a.new, b.new):
        return PadState(power, "zero")
    for x, y in ((a, b), (b, a)):
        if x.new == "const" and y.new != "one":
            return PadState(power, y.new, y.weights)
        if x.new == "one" and y.new == "mean" and x.weights[0] in y.weights:
            rest = list(y.weights)
            rest.remove(x.weights[0])
            return PadState(power, "mean", tuple(rest))
    return PadState(power, "free")


def mapped(a: PadState, zero_stays: bool) -> PadState:
    """Returns the state of an elementwise function; only for factor 1."""
    if a.new == "const" or (a.new == "zero" and zero_stays):
        return a
    return PadState(a.power, "free")
