"""A row of bench/published.py: what of progc was run beside what of the published code, and how far they differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from bench.published_code import Code

CODE, LIBRARY, FORMULA = "published code", "library", "formula"
"""What stands for the published side: its own functions, those of a library that it calls (timm, scipy, diffusers), or
its equations, written again in bench/."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what is compared.
        progc, published: which function or setting of either side was run.
        side: `published code`, `library` or `formula`.
        cases: number of inputs that both sides got.
        differ: number of cases whose results differ by more than `tolerance`.
        largest: largest difference; None where results are not numbers.
        tolerance: largest difference that counts as equal.
        record: the record in docs/adr/ that has the reason if there are differences, or if it is absent.
        issue: the issue that asks for what is absent.
        absent: whether progc has nothing to compare.
        note: what the numbers mean.
    """

    name: str
    progc: str
    published: str
    side: str
    cases: int = 0
    differ: int = 0
    largest: float | None = None
    tolerance: float = 0.0
    record: int | None = None
    issue: int | None = None
    absent: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """`equal`, `differs by design (record NN)`, `absent (issue NN)`, or `differs`: without a recorded reason."""
        if self.absent:
            return f"absent (record {self.record:02d})" if self.record else f"absent (issue {self.issue})"
        if not self.cases:
            return "not compared"
        if not self.differ:
            return "equal"
        return f"differs by design (record {self.record:02d})" if self.record else "differs"

    @property
    def settled(self) -> bool:
        """Whether it is equal, or a record or an issue has the reason."""
        return self.verdict not in ("differs", "not compared")

    def to_json(self) -> dict[str, Any]:
        """Returns the row as it is written; differences have three significant digits."""
        data = {"row": self.name, "verdict": self.verdict, "published side": self.side, **dataclasses.asdict(self)}
        for key in ("name", "side", "absent"):
            del data[key]
        data["largest"] = None if self.largest is None else float(f"{self.largest:.3g}")
        return {key: value for key, value in data.items() if value not in (None, "")}


Compare = Callable[[Code], Iterable[Row]]
"""Makes rows; gets the published code, as far as the user has it."""


class Count:
    """Counts cases and differences."""

    def __init__(self, tolerance: float = 0.0) -> None:
        self.tolerance, self.cases, self.differ, self.largest = tolerance, 0, 0, 0.0

    def same(self, ours: Any, theirs: Any) -> None:
        """Compares two results that are equal or not."""
        self.cases += 1
        self.differ += ours != theirs

    def near(self, ours: float, theirs: float, scale: float = 1.0) -> None:
        """Compares two numbers; the difference is divided by `scale`."""
        self.cases += 1
        gap = 0.0 if ours == theirs else abs(ours - theirs) / scale
        self.differ += not gap <= self.tolerance
        self.largest = max(self.largest, gap if math.isfinite(gap) else math.inf)

    def tensors(self, ours: Any, theirs: Any) -> None:
        """Compares two tensors as one case, by the largest difference of their entries."""
        if tuple(ours.shape) != tuple(theirs.shape):
            self.near(math.inf, 0.0)
            return
        self.near(float((ours.detach().double() - theirs.detach().double()).abs().max()) if ours.numel() else 0.0, 0.0)

    def row(self, name: str, progc: str, published: str, side: str, *, numbers: bool = False, **more: Any) -> Row:
        """Returns the row; `numbers` says whether differences are numbers."""
        largest = self.largest if numbers else None
        return Row(name, progc, published, side, self.cases, self.differ, largest, self.tolerance, **more)
