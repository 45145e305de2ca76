"""What a run has seen since its last line of metrics, and its best validation: part of its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Seen:
    """Sums that must not begin anew when a run goes on: its metrics would then be others.

    Attributes:
        best: the best value so far of what `is_best` looks at; None before the first.
        skipped: steps that were left out, in the whole run.
        validated: step of the last whole validation; None before the first.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.skipped = 0
        self.validated: int | None = None
        self._sum, self._count = 0.0, 0
        self._news: tuple[float, float] | None = None

    def add(self, loss: float, skipped: bool) -> None:
        """One step."""
        if skipped:
            self.skipped += 1
        else:
            self._sum, self._count = self._sum + loss, self._count + 1

    def take(self) -> float | None:
        """Mean loss since the last call; None if no step was taken."""
        mean = self._sum / self._count if self._count else None
        self._sum, self._count = 0.0, 0
        return mean

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether this validation is the best so far: by top-1 accuracy, or by loss where there is none.

        Averaged weights count like the trained ones: the better of them.
        """
        value = score(metrics)
        if value is None or not math.isfinite(value) or (self.best is not None and value <= self.best):
            return False
        self.best = value
        return True

    def tell(self, value: float, seconds: float) -> None:
        """Keeps what a validation says until the schedule's rules are told."""
        self._news = value, seconds

    def news(self) -> tuple[float, float] | None:
        """The last validation and the run's seconds then, if that was not asked for before."""
        news, self._news = self._news, None
        return news

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "best": self.best, "skipped": self.skipped, "sum": self._sum, "count": self._count,
            "validated": self.validated, "news": self._news,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.best, self.skipped = state["best"], int(state["skipped"])
        self._sum, self._count = float(state["sum"]), int(state["count"])
        self.validated, news = state.get("validated"), state.get("news")
        self._news = None if news is None else (float(news[0]), float(news[1]))


def score(metrics: Mapping[str, float], higher: bool = True) -> float | None:
    """One number for a validation: top-1 accuracy, or the negative loss where there is none; None if there is neither.

    Args:
        higher: whether higher is to be better; if not, it is the loss.
    """
    accuracies = [value for name, value in metrics.items() if name.rpartition("/")[2] == "top1"]
    losses = [value for name, value in metrics.items() if name.rpartition("/")[2] == "loss"]
    if not higher:
        return min(losses, default=None)
    return max(accuracies or [-loss for loss in losses], default=None)
