"""Looks at loss and gradient of a step before it changes anything."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from progc.errors import CheckError
from progc.train.settings import Settings

WINDOW = 50
"""Steps that a spike is compared with."""

LEAST = 10
"""Steps of the present stage without which nothing counts as a spike."""


class Guard:
    """Says which steps are left out, and when a run has to end.

    A step is left out if its loss or the norm of its gradient is not finite, or, with `spike`, if its loss is above the
    mean of the last `WINDOW` steps by that many standard deviations.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._skipped = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """None if the step may be taken, else why it is left out.

        Raises:
            CheckError: the run has to end: not finite where that is not to be skipped, or too many in a row.
        """
        reason = self._reason(loss, norm)
        if reason is None:
            self._recent.append(loss)
            self._skipped = 0
            return None
        if self.settings.nan == "stop" and not (math.isfinite(loss) and math.isfinite(norm)):
            raise CheckError(
                f"{reason}; weights are as before this step: lower the learning rate, or leave it out by nan=skip"
            )
        self._skipped += 1
        if self._skipped > self.settings.max_skipped:
            raise CheckError(
                f"{self._skipped} steps in a row were left out, the last because {reason}; lower the learning rate "
                "and go on from an earlier checkpoint"
            )
        return reason

    def _reason(self, loss: float, norm: float) -> str | None:
        for what, value in (("the loss", loss), ("the norm of the gradient", norm)):
            if not math.isfinite(value):
                return f"{what} is not finite ({value})"
        if self.settings.spike is None or len(self._recent) < LEAST:
            return None
        mean = math.fsum(self._recent) / len(self._recent)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self._recent) / len(self._recent))
        limit = mean + self.settings.spike * deviation
        return f"the loss {loss:.4g} is a spike above {limit:.4g}" if loss > limit else None

    def boundary(self) -> None:
        """Forgets recent losses: behind growth, or at another resolution, they are others without being spikes."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"recent": list(self._recent), "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._recent = deque((float(value) for value in state["recent"]), maxlen=WINDOW)
        self._skipped = int(state["skipped"])
