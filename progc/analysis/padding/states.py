"""What a value holds right after padding: a power of `s` on its old units, and what its new units are.

A small lattice (docs/growth.md 0.1): `free` says nothing and is above all others. Powers are whole numbers, so that
equalities between factors are decided, not measured: the mean of squares over a padded axis has `s ** 2` from the
values and `s ** -2` from the number of units.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import fx

from progc.ir.operations import DemandRefused
from progc.ir.program import Mode

New = Literal["zero", "mean", "const", "one", "free", "any"]


class PaddingRefused(DemandRefused):
    """An axis cannot be padded exactly; the message names the operation and why."""


class Differs(PaddingRefused):
    """Two values meet that have different factors, and nobody has asked anything of one of them yet."""

    def __init__(self, message: str, mode: Mode, value: fx.Node, power: int) -> None:
        super().__init__(message)
        self.mode, self.value, self.power = mode, value, power


@dataclasses.dataclass(frozen=True)
class PadState:
    """State of a value for one axis that is padded.

    Attributes:
        power: old units are `s ** power` times what they were.
        new: what new units hold. `zero`; `mean`: `s ** power` times the mean over the old units, each times its entries
            of the tensors in `weights`; `const`: all units of the axis are alike, the new ones too, or the value does
            not have the axis; `one`: a gain (named in `weights`) that is 1 for new units; `free`: something finite.
            `any` occurs in demands only.
        weights: canonical names of tensors, sorted.
    """

    power: int
    new: New
    weights: tuple[str, ...] = ()


ALIKE = PadState(0, "const")
"""A value that padding leaves alone."""


def joined(a: PadState, b: PadState) -> PadState | None:
    """State of a sum, or of values put side by side; None if their factors differ."""
    if a.power != b.power:
        return None
    kinds = {a.new, b.new}
    if a == b and a.new != "one":
        return a
    if kinds == {"mean", "const"} and not a.weights and not b.weights:
        return PadState(a.power, "mean")
    return PadState(a.power, "free")


def multiplied(a: PadState, b: PadState) -> PadState:
    """State of a product, unit by unit."""
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
    """State of a function of each unit; only for factor 1."""
    if a.new == "const" or (a.new == "zero" and zero_stays):
        return a
    return PadState(a.power, "free")
