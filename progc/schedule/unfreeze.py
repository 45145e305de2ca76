"""Which blocks of a stage train: interleaved, or all but a closed prefix or a suffix, in levels.

`interleave:2/4` trains blocks b with b mod 4 < 2 (the levels of AutoProg-Zero); `prefix:2/4` freezes the first half of
the blocks with everything before and between them, so that the backward ends there; `suffix:2/4` freezes the last
half.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.files.suggestions import did_you_mean

if TYPE_CHECKING:
    from progc.pipeline.base import Pass

SHAPES = ("interleave", "prefix", "suffix")
_TEXT = re.compile(r"(?P<shape>[a-z]+):(?P<level>\d+)/(?P<of>\d+)")


@dataclasses.dataclass(frozen=True)
class Unfreeze:
    """Level `level` of `of` levels of one shape; at the last level everything trains.

    Raises:
        InputError: an unknown shape, or a level out of 1 to `of`.
    """

    shape: str
    level: int
    of: int

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            hint = did_you_mean(self.shape, SHAPES) or f"; shapes are {', '.join(SHAPES)}"
            raise InputError(f"unfreeze: there is no shape `{self.shape}`{hint}")
        if not 1 <= self.level <= self.of:
            raise InputError(f"unfreeze: level {self.level} of {self.of} is out of range; give 1 to {max(self.of, 1)}")

    @classmethod
    def parse(cls, text: str) -> Unfreeze:
        """`interleave:2/4`.

        Raises:
            InputError: another text.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise InputError(f"unfreeze `{text}`: expected shape:level/levels, such as interleave:2/4")
        return cls(match["shape"], int(match["level"]), int(match["of"]))

    @property
    def full(self) -> bool:
        """Whether everything trains."""
        return self.level == self.of

    @property
    def share(self) -> Fraction:
        """Share of the blocks that trains."""
        return Fraction(self.level, self.of)

    def frozen(self, blocks: int) -> int:
        """How many of `blocks` blocks are frozen by a prefix or suffix of this level; at least one trains."""
        return min(blocks - 1, round(blocks * (1 - self.share))) if blocks else 0

    def freeze(self, blocks: int, *, measure: bool = False) -> Pass:
        """The pass that sets this level in a program of that many blocks; one that frees everything at the last."""
        from progc.passes.freeze import Freeze

        if self.full:
            return Freeze(measure=measure)
        if self.shape == "interleave":
            return Freeze(level=self.level, of=self.of, measure=measure)
        count = self.frozen(blocks)
        if self.shape == "prefix":
            return Freeze(prefix=count, stem=True, measure=measure)
        return Freeze(suffix=count, measure=measure)

    def __str__(self) -> str:
        return f"{self.shape}:{self.level}/{self.of}"
