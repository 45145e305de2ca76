"""Shares of the stages: which part of a run each stage takes, and their number and batches, as users say it.

0.5,0.2,0.1,0.2    parts of the run, one per stage, that sum to 1
50,20,10,20        whole numbers: proportions, here percent
late               the smallest network trains for half of the run, the other stages share the rest evenly
late:0.7           the same with 0.7 of the run
even               every stage has the same share, which is the default
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from fractions import Fraction

from progc.errors import InputError, did_you_mean

Shares = str | Sequence[float] | None
"""A text as above, or the numbers; None is `even`."""

EVEN, LATE, AUTO = "even", "late", "auto"
DEFAULT_STAGES = 4
ROUNDING = 0.01
"""How far shares may be from a sum of 1, so that `0.33,0.33,0.33` can be said."""
_LATE = Fraction(1, 2)
_EXPECTED = "parts of the run that sum to 1, such as 0.5,0.2,0.1,0.2, whole numbers such as 50,20,10,20, late or even"
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def checked_shares(given: Shares) -> str | tuple[float, ...] | None:
    """Returns the shares that a user gives: a name in its short form, or one number per stage with the sum 1.

    Args:
        given: a text or numbers, see the module's docstring.

    Raises:
        InputError: something else, a number that is not positive, or a sum that is not 1.
    """
    if given is None:
        return None
    if isinstance(given, str):
        text = given.strip()
        if text[:1].isalpha():
            first = _late_part(text)
            return EVEN if first is None else LATE if first == _LATE else f"{LATE}:{float(first):g}"
        items = [part.strip() for part in text.split(",")]
        if not all(_NUMBER.fullmatch(item) for item in items):
            raise InputError(f"shares `{given}`: expected {_EXPECTED}")
        values = [float(item) for item in items]
    elif isinstance(given, Sequence):
        text = ",".join(map(str, given))
        if not given or not all(isinstance(item, numbers.Real) and not isinstance(item, bool) for item in given):
            raise InputError(f"shares: expected {_EXPECTED}, got {given!r}")
        values = [float(item) for item in given]
    else:
        raise InputError(f"shares: expected {_EXPECTED}, got {given!r}")
    for value in values:
        if not 0 < value < math.inf:
            raise InputError(
                f"shares `{text}`: expected numbers above 0, got {value:g}; leave out stages without a share"
            )
    whole = math.fsum(values)
    if abs(whole - 1) > ROUNDING + 1e-9 and not all(value.is_integer() for value in values):
        raise InputError(
            f"shares `{text}`: they sum to {whole:g}; give parts of the run that sum to 1, or whole numbers as "
            "proportions, such as 50,20,10,20"
        )
    return tuple(value / whole for value in values)


def stage_shares(shares: str | tuple[float, ...] | None, stages: int) -> tuple[float, ...]:
    """Returns one share per stage, above 0, with the sum 1.

    Args:
        shares: what `checked_shares` returns.
        stages: number of stages, at least 1; that of the shares if they are numbers.
    """
    if isinstance(shares, tuple):
        assert len(shares) == stages
        return shares
    first = _late_part(shares) if shares is not None else None
    if first is None or stages == 1:
        return (1 / stages,) * stages
    return (float(first), *(float((1 - first) / (stages - 1)),) * (stages - 1))


def stages_from_text(text: str | None, most: int | None = None) -> int | str | None:
    """Returns the number of stages that a command line gives: an integer, `auto`, or None.

    Args:
        most: the largest number that is allowed.

    Raises:
        InputError: something else.
    """
    if text is None or text == AUTO:
        return text
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 1 <= int(text) <= (most or int(text)):
        allowed = f"an integer from 1 to {most}" if most else "an integer of at least 1"
        raise InputError(f"--stages {text}: expected {allowed}, or auto for one stage per level")
    return int(text)


def batches_from_text(text: str | None) -> list[int] | None:
    """Returns the batch of each stage that a command line gives, such as `256,128,64`; None without a text.

    Raises:
        InputError: something else.
    """
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9]\d{0,8}", item, re.ASCII) for item in items):
        raise InputError(f"--stage-batch {text}: expected an integer of at least 1 for each stage, such as 256,128,64")
    return [int(item) for item in items]


def begins(shares: Sequence[float], length: int, unit: str) -> list[int]:
    """Returns the epoch (or step) at which each stage begins: the shares before it times the length, rounded down.

    Raises:
        InputError: a stage would have no epoch (or step).
    """
    # As fractions: thirds of a length add up to integers, which sums of floats miss by rounding.
    exact = [Fraction(share).limit_denominator(10**6) for share in shares]
    found = [math.floor(length * sum(exact[:k], Fraction(0))) for k in range(len(exact))]
    for k, (begin, end) in enumerate(zip(found, [*found[1:], length], strict=True)):
        if end <= begin:
            few = length < len(shares)
            which = "" if few else f" of these shares: stage {k} would have none"
            raise InputError(
                f"{length} {unit} are too few for {len(shares)} stages{which}; give at least one for each stage"
            )
    return found


def _late_part(name: str) -> Fraction | None:
    """The part of the run that the first stage has; None for `even`.

    Raises:
        InputError: an unknown name, or a part out of range.
    """
    word, colon, number = name.partition(":")
    if word not in (EVEN, LATE):
        raise InputError(
            f"shares `{name}`: unknown name{did_you_mean(word, (EVEN, LATE)) or f'; expected {_EXPECTED}'}"
        )
    if word == EVEN and not colon:
        return None
    if not colon:
        return _LATE
    if word == EVEN or not _NUMBER.fullmatch(number) or not 0 < float(number) < 1:
        raise InputError(
            f"shares `{name}`: expected late:PART with a part of the run between 0 and 1, such as late:0.7"
        )
    return Fraction(number)
