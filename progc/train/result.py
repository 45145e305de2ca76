"""How a run ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        run: its folder.
        step: optimizer steps done.
        finished: whether the schedule came to its end.
        signal: number of the signal that ended it before; None otherwise.
        metrics: of the last validation.
        seconds: that the run took so far, those before it was interrupted included.
    """

    run: Path
    step: int
    finished: bool
    signal: int | None
    metrics: Mapping[str, float]
    seconds: float = 0.0
