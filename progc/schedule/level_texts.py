"""Reads the levels of a growth space as users write them.

0.5:1:4                    from:to:levels, evenly spaced factors of the full size
6:12:3                     the same in sizes: 6, 9, 12
0.25,0.5,1                 factors, if one of them has a decimal point or `*`
6,9,12                     sizes
layer3:6,layer3:23         levels of one chain; also layer3:0.5:1:4 and layer3:0.5,layer3:1
none                       the dimension does not vary
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from progc.errors import InputError
from progc.schedule.space import factors

Levels = str | int | float | Sequence[Any] | Mapping[str, Any] | None
"""A text as above, or its items: numbers, texts, pairs (height, width), or chain name to items."""

NONE = "none"
_NUMBER = r"\*?(?:\d+(?:\.\d*)?|\.\d+)"
_RANGE = re.compile(rf"(?:(?P<name>.+):)?(?P<low>{_NUMBER}):(?P<high>{_NUMBER}):(?P<levels>\d+)")
_SINGLE = re.compile(rf"(?:(?P<name>.+):)?(?P<number>{_NUMBER})")


@dataclasses.dataclass(frozen=True)
class Wish:
    """Levels that the user gives, ascending.

    Attributes:
        name: name of the chain that they are for; None: all chains.
        values: sizes, or factors of the full size.
        relative: whether the values are factors.
        text: the user's text, for messages.
    """

    name: str | None
    values: tuple[Fraction, ...]
    relative: bool
    text: str


def items(given: Levels) -> list[str]:
    """Returns the items of a text, or of the numbers, pairs and mappings that Python users may give instead."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        return [f"{name}:{item}" for name, levels in given.items() for item in items(levels)]
    if isinstance(given, (str, int, float)):
        return [part.strip() for part in str(given).split(",")]
    found: list[str] = []
    for item in given:
        pair = not isinstance(item, str) and isinstance(item, Sequence)
        found += ["x".join(map(str, item))] if pair else items(item)
    return found


def switched_off(given: Levels) -> bool:
    """Returns whether a text is `none`: the dimension does not vary."""
    return isinstance(given, str) and given.strip() == NONE


def parse(what: str, given: Levels, *, named: bool = False, example: str = "6,9,12") -> list[Wish]:
    """Reads the levels of a text, one `Wish` per name.

    Args:
        what: `depths` or `widths`, for messages.
        named: whether levels may be for one chain.
        example: example of sizes, for messages.

    Raises:
        InputError: an invalid text, a factor outside of (0, 1], or levels that do not ascend.
    """
    groups: dict[str | None, list[str]] = {}
    ranges: dict[str | None, re.Match[str]] = {}
    expected = f"expected factors (0.5:1:4 or 0.25,0.5,1), sizes ({example}), or {NONE}"
    for item in items(given):
        ranged = _RANGE.fullmatch(item)
        match = ranged or _SINGLE.fullmatch(item)
        if match is None or (match["name"] is not None and not named):
            raise InputError(f"{what} `{item}`: {expected}")
        if ranged is not None:
            ranges[match["name"]] = ranged
        groups.setdefault(match["name"], []).append(item)
    if not groups:
        raise InputError(f"{what}: no levels are given; {expected}")
    return [_wish(what, name, texts, ranges.get(name)) for name, texts in groups.items()]


def _wish(what: str, name: str | None, texts: list[str], ranged: re.Match[str] | None) -> Wish:
    text = ",".join(texts)
    if ranged is not None and len(texts) > 1:
        raise InputError(f"{what} `{text}`: from:to:levels gives all levels; remove the other ones")
    numbers = [ranged["low"], ranged["high"]] if ranged else [item.rpartition(":")[2] for item in texts]
    relative = any("." in number or "*" in number for number in numbers)
    values = [Fraction(number.lstrip("*")) for number in numbers]
    if ranged is not None:
        if not int(ranged["levels"]):
            raise InputError(f"{what} `{text}`: expected at least 1 level, got 0")
        if values[1] < values[0]:
            raise InputError(
                f"{what} `{text}`: expected ascending levels; write {numbers[1]}:{numbers[0]}:{ranged['levels']}"
            )
        values = factors(values[0], values[1], int(ranged["levels"]))
    if any(value <= 0 or (relative and value > 1) for value in values):
        raise InputError(f"{what} `{text}`: expected factors above 0 and at most 1, or sizes of at least 1")
    if any(b < a for a, b in zip(values, values[1:], strict=False)):
        raise InputError(f"{what} `{text}`: expected ascending levels; write the smallest one first")
    return Wish(name, tuple(values), relative, text)
