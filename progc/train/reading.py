"""Reads the values of steps: running sums, and a line for every step that was skipped, with the samples it had."""

from __future__ import annotations

from progc.data.order import order
from progc.errors import CheckError
from progc.train.keeping import Keeping
from progc.train.metrics import Metrics
from progc.train.stepping import Outcome
from progc.train.watching import Seen


class Readings:
    """Steps whose values the host has not read yet."""

    def __init__(self, seen: Seen, log: Metrics, keeping: Keeping, count: int) -> None:
        """
        Args:
            seen: the running sums.
            log: metrics of the run.
            keeping: knows the position in the data of every step.
            count: number of training samples.
        """
        self.seen, self.log, self.keeping, self.count = seen, log, keeping, count
        self._unread: list[tuple[int, Outcome]] = []

    def add(self, step: int, outcome: Outcome) -> None:
        """Adds a step; its number counts from 1."""
        self._unread.append((step, outcome))

    def read(self) -> None:
        """Reads the values of the last steps, which waits for the device, and adds them to the running sums.

        Raises:
            CheckError: the guard ends the run because of one of these steps.
        """
        unread, self._unread = self._unread, []
        for step, outcome in unread:
            try:
                skipped = outcome.skipped
            except CheckError as error:
                raise CheckError(f"step {step}: {error}") from error
            self.seen.add(outcome.loss, skipped is not None, outcome.norm)
            if skipped is not None:
                samples = self._samples(step)
                self.seen.left_out(step, len(samples))
                self.log.write("note", step, {"skipped": skipped, "loss": outcome.loss, "samples": samples})

    def _samples(self, step: int) -> list[int]:
        """Indices of the samples of a step in the data set, over all ranks."""
        at = self.keeping.position(step - 1)
        chosen = order(at.seed, at.epoch, self.count)[at.index : at.index + self.keeping.settings.batch]
        return [int(index) for index in chosen]
