"""How the steps, the epochs and the samples of a run follow from one another where stages have batches of their own.

An epoch has as many steps as the batch of its stage gives. A schedule that counts epochs has stages of whole epochs. In
one that counts steps a stage may begin in the middle of an epoch: it continues where the stage before ended, so that no
sample is used twice in an epoch. Samples at the end of an epoch that do not fill a batch are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from progc.errors import InputError
from progc.schedule.controlling import Ended
from progc.schedule.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class _Begin:
    """Where a stage begins.

    Attributes:
        step: optimizer steps done before it.
        epoch: its first epoch.
        index: samples of that epoch that are used already.
    """

    step: int
    epoch: int
    index: int


class Pace:
    """Converts between the unit of a schedule (epochs or steps), optimizer steps, and positions in the data.

    Steps are counted over the whole run. Methods also take the stage, since a step at a boundary belongs to the stage
    that ends and to the one that begins.

    Attributes:
        batches: samples per optimizer step of each stage, over all ranks.
        per_epoch: optimizer steps per epoch of each stage.
        per_unit: optimizer steps per unit of the schedule, of each stage.
        units: length of the run in the unit of the schedule.
    """

    def __init__(self, batches: Sequence[int], samples: int, unit: str, starts: Sequence[int], units: int) -> None:
        """
        Args:
            batches: samples per step of each stage.
            samples: number of samples of an epoch.
            unit: `epochs` or `steps`.
            starts: the epoch or step at which each stage begins, 0 for the first.
            units: length of the run in this unit.

        Raises:
            InputError: a stage has a larger batch than there are samples.
        """
        self.batches, self.units, self._epochs = tuple(batches), units, unit == "epochs"
        for stage, batch in enumerate(self.batches):
            if batch > samples:
                where = f" for stage {stage}" if len(set(self.batches)) > 1 else ""
                raise InputError(
                    f"expected at least a batch of {batch} samples{where}, got {samples}; use a smaller batch"
                )
        self.per_epoch = tuple(samples // batch for batch in self.batches)
        self.per_unit = self.per_epoch if self._epochs else (1,) * len(self.batches)
        self._samples, self._starts = samples, [*starts]
        self._begins: list[_Begin] = []
        self._count()

    @classmethod
    def of(cls, schedule: Schedule, batch: int, samples: int, total: int | None = None) -> Pace:
        """Makes the pace of a schedule.

        Args:
            batch: samples per step of stages that have none of their own.
            samples: number of samples of an epoch.
            total: length of the run in the unit of the schedule; None takes the schedule's own.

        Raises:
            InputError: the length is unknown or too short, or a batch is larger than the number of samples.
        """
        starts = schedule.starts(total)
        units = schedule.total if total is None else total
        assert units is not None
        return cls(schedule.batches(batch), samples, schedule.unit, starts, units)

    def begin(self, stage: int, unit: int) -> None:
        """Sets where a stage really begins: rules may end the one before early or late.

        Stages after it are planned as before, but no earlier than this one.
        """
        later = [max(start, unit) for start in self._starts[stage + 1 :]]
        self._starts = [*self._starts[:stage], unit, *later]
        self._count()

    def follow(self, ends: Iterable[Ended]) -> None:
        """Sets where stages begin after those that rules have ended."""
        for end in ends:
            if end.stage + 1 < len(self.batches):
                self.begin(end.stage + 1, end.step)

    def _count(self) -> None:
        """Finds the first step and sample of each stage."""
        at = _Begin(0, 0, 0)
        self._begins = []
        for stage, (start, end) in enumerate(zip(self._starts, [*self._starts[1:], self.units], strict=True)):
            self._begins.append(at)
            steps = (end - start) * self.per_unit[stage]
            at = _Begin(at.step + steps, *self._after(stage, steps))
        self.total = at.step

    # --- steps ------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> tuple[int, ...]:
        """Optimizer steps of each stage, as they are planned now."""
        ends = [begin.step for begin in self._begins[1:]]
        return tuple(end - begin.step for begin, end in zip(self._begins, [*ends, self.total], strict=True))

    def start(self, stage: int) -> int:
        """Returns the optimizer steps that are done when a stage begins."""
        return self._begins[stage].step

    def step(self, stage: int, unit: int) -> int:
        """Returns the optimizer steps that are done when a stage reaches an epoch (or step) of the run."""
        return self.start(stage) + (unit - self._starts[stage]) * self.per_unit[stage]

    def unit(self, stage: int, step: int) -> int | None:
        """Returns the epochs (or steps) that are done after `step` optimizer steps; None inside an epoch."""
        done, rest = divmod(step - self.start(stage), self.per_unit[stage])
        return None if rest else self._starts[stage] + done

    # --- samples ----------------------------------------------------------------------------------------------------

    def position(self, stage: int, step: int) -> tuple[int, int]:
        """Returns the epoch and the number of its samples that are used, after `step` steps of the run.

        Where a whole batch is no longer left this is the beginning of the next epoch.
        """
        return self._after(stage, step - self.start(stage))

    def _after(self, stage: int, steps: int) -> tuple[int, int]:
        """The position after some steps of a stage."""
        begin, batch = self._begins[stage], self.batches[stage]
        left = (self._samples - begin.index) // batch
        if steps < left:
            return begin.epoch, begin.index + steps * batch
        epochs, place = divmod(steps - left, self.per_epoch[stage])
        return begin.epoch + 1 + epochs, place * batch

    # --- the length of the run, for the learning rate ---------------------------------------------------------------

    @property
    def ruler(self) -> int:
        """Marks per unit of the schedule; where it counts epochs, those of the stage with the smallest batch.

        A learning rate follows these marks and not the steps, so that at the same epoch it is the same for any batches.
        With one batch in all stages every step is a mark.
        """
        return max(self.per_unit)

    def mark(self, stage: int, step: int) -> float:
        """Returns the marks that the run has passed after `step` steps."""
        done = (step - self.start(stage)) * self.ruler / self.per_unit[stage]
        return self._starts[stage] * self.ruler + done

    def stride(self, stage: int) -> float:
        """Returns the marks that a step of a stage passes."""
        return self.ruler / self.per_unit[stage]
