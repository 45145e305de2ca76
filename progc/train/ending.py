"""Whether a run has to end: a signal to any rank ends all of them, after the same step.

Ranks agree in two ways. `now` waits for all of them. `later` does not wait: a rank learns what was asked for when it
called the last time, so all ranks end one step later than they could, and no step waits for another process.
"""

from __future__ import annotations

from collections.abc import Callable

from progc.train.parallel.base import Parallel
from progc.train.run_folder import Asked


class Ending:
    """Answers whether the run has to end, with the same answer on all ranks.

    All ranks have to call every method equally often and in the same order.
    """

    def __init__(self, asked: Asked, parallel: Parallel) -> None:
        """
        Args:
            asked: whether a signal reached this process.
            parallel: the processes that train together.
        """
        self.asked, self.parallel = asked, parallel
        self._answer: Callable[[], bool] | None = None
        self._agreed = False

    def now(self) -> bool:
        """Returns whether a signal has reached any rank so far; waits for all ranks."""
        self.settle()
        self._agreed = self._agreed or self.parallel.any(bool(self.asked))
        return self._agreed

    def later(self) -> bool:
        """Returns whether a signal had reached any rank when this was called before, and starts asking again.

        A process that trains alone has nothing to wait for, and gets the present answer.
        """
        if self.parallel.world == 1:
            return self.now()
        self.settle()
        if not self._agreed:
            self._answer = self.parallel.asked(bool(self.asked))
        return self._agreed

    def settle(self) -> None:
        """Waits for the answer that `later` asked for, so that no message between ranks is under way."""
        answer, self._answer = self._answer, None
        if answer is not None:
            self._agreed = answer() or self._agreed
