"""Decides when each stage of a run ends: the state machine that applies a schedule's rules.

A `Controller` gets what training observes and decides when a stage ends. It is deterministic: its decisions depend only
on the observations (it measures no time itself), its state is JSON, and every end is recorded. A resumed run repeats
the recorded ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progc.errors import InputError
from progc.schedule import rules
from progc.schedule.rules import Rule, rule_from_json

if TYPE_CHECKING:
    from progc.schedule.schedule import Schedule

STATE = "progc controller"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of one stage, as it is logged.

    Attributes:
        stage: index of the stage.
        step: number of steps of the whole run that were done at the end.
        planned: the step at which the stage would have ended without rules.
        reason: one sentence that says why it ended.
        rule: kind of the rule that ended it; None if it had its full length.
        value: what the rule measured.
    """

    stage: int
    step: int
    planned: int
    reason: str
    rule: str | None = None
    value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ended:
        """Reads an end that `to_json` wrote.

        Raises:
            InputError: not such an object.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(
                f"the record of a stage's end cannot be read: {error}; start the run again from the beginning"
            ) from error


class Controller:
    """Decides when each stage of a run ends.

        controller = Controller.of(schedule, total=10_000)
        controller.observe(step, loss=2.3)          # after every step; `step` steps are done
        if controller.ended(): ...                  # the next stage begins

    The length of the run does not change: a stage gets its part of the steps that are left, so steps that one stage
    does not use go to the later ones. No stage gets less than `least` or more than `most` of its share, and the last
    one never less than its share. A stage ends early as soon as one rule says that it is over. It is prolonged while
    every rule has enough observations and none says that it is over.

    Attributes:
        stage: index of the present stage; the number of stages when the run is over.
        start: the step at which the present stage began.
        step: number of steps done.
        log: ends so far.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        ending: Sequence[Rule] = (),
        *,
        costs: Sequence[float] | None = None,
        recorded: Sequence[Ended] = (),
    ) -> None:
        """Makes the controller of a run at its beginning.

        Args:
            lengths: planned steps of every stage, at least 1 each.
            costs: cost of a step of each stage, in any unit, for `Gain(against="next")`. None: all are equal.
            recorded: ends of the same run, which are repeated.

        Raises:
            InputError: a stage without a step.
        """
        if not lengths or min(lengths) < 1:
            raise InputError(f"expected at least 1 step for every stage, got {list(lengths)}; give more steps")
        self.lengths = tuple(lengths)
        self.rules = tuple(ending)
        self.costs = tuple(costs) if costs is not None else (1.0,) * len(self.lengths)
        self.recorded = {end.stage: end for end in recorded}
        self.stage = self.start = self.step = 0
        self.log: list[Ended] = []
        self._memories = [rules.memory(rule) for rule in self.rules]
        self._last: Ended | None = None

    @classmethod
    def of(cls, schedule: Schedule, total: int | None = None, *, recorded: Sequence[Ended] = ()) -> Controller:
        """Makes the controller of a schedule.

        Args:
            total: length of the run in the schedule's unit; None takes the schedule's own.
            recorded: ends of the same run, which are repeated.

        Raises:
            InputError: the length is not known, or a stage would have no step.
        """
        starts = schedule.starts(total)
        length = schedule.total if total is None else total
        assert length is not None
        lengths = [b - a for a, b in zip(starts, [*starts[1:], length], strict=True)]
        return cls(lengths, schedule.rules, costs=schedule.costs(), recorded=recorded)

    @property
    def total(self) -> int:
        """Number of steps of the whole run."""
        return sum(self.lengths)

    @property
    def planned(self) -> int:
        """The step at which the present stage ends if no rule decides otherwise."""
        if self.stage >= len(self.lengths) - 1:
            return self.total
        left = sum(self.lengths[self.stage :])
        length = round((self.total - self.start) * self.lengths[self.stage] / left)
        return self.start + min(max(length, self._least(self.stage)), self.latest - self.start)

    @property
    def latest(self) -> int:
        """The last step at which the present stage can end: later ones keep their least, the last one its share."""
        if self.stage >= len(self.lengths) - 1:
            return self.total
        most = min((rule.most for rule in self.rules), default=1.0)
        kept = sum(self._least(stage) for stage in range(self.stage + 1, len(self.lengths) - 1)) + self.lengths[-1]
        length = max(math.floor(most * self.lengths[self.stage] + 1e-9), 1)
        return min(self.start + length, self.total - kept)

    def _least(self, stage: int) -> int:
        least = max((rule.least for rule in self.rules), default=1.0)
        return max(math.ceil(least * self.lengths[stage] - 1e-9), 1)

    def observe(
        self, step: int, *, loss: float | None = None, validation: float | None = None, seconds: float | None = None
    ) -> None:
        """Takes what was observed after `step` steps of the run, and ends the stage if it is over.

        Args:
            step: number of steps of the run that are done.
            loss: training loss of this step; a value that is not finite is ignored.
            validation: result of a validation, if there was one.
            seconds: wall seconds since the run began, with `validation`.

        Raises:
            InputError: the step is before the previous one.
        """
        if step < self.step:
            raise InputError(
                f"step {step} is observed after step {self.step}; observe steps in order, or resume from the state at "
                f"step {step}"
            )
        self.step, self._last = step, None
        if self.stage >= len(self.lengths):
            return
        for rule, memory in zip(self.rules, self._memories, strict=True):
            rules.remember(rule, memory, loss, validation, seconds)
        end = self._end()
        if end is None:
            return
        self.log.append(end)
        self._last = end
        self.stage, self.start = self.stage + 1, step
        self._memories = [rules.memory(rule) for rule in self.rules]

    def ended(self) -> Ended | None:
        """Returns the end that the last observation caused; None if the stage continues."""
        return self._last

    def _end(self) -> Ended | None:
        planned = self.planned
        if self.stage in self.recorded:
            end = self.recorded[self.stage]
            return end if self.step >= end.step else None
        if self.stage == len(self.lengths) - 1:
            return self._record(planned, "the run is over") if self.step >= self.total else None
        if self.step - self.start < self._least(self.stage):
            return None
        ratio = self.costs[self.stage + 1] / self.costs[self.stage] if self.costs[self.stage] else 1.0
        told = [rules.judge(rule, memory, ratio) for rule, memory in zip(self.rules, self._memories, strict=True)]
        for rule, verdict in zip(self.rules, told, strict=True):
            if verdict is not None and verdict.over:
                return self._record(planned, verdict.reason, rule.kind, verdict.value)
        if self.step >= self.latest:
            late = "the stage cannot be longer" if self.step > planned else "its length is reached"
            return self._record(planned, late)
        if self.step >= planned and not (told and all(verdict is not None for verdict in told)):
            return self._record(planned, "its length is reached")
        return None

    def _record(self, planned: int, reason: str, rule: str | None = None, value: float | None = None) -> Ended:
        return Ended(self.stage, self.step, planned, reason, rule, value)

    def state(self) -> dict[str, Any]:
        """Returns the whole state as a JSON object."""
        return {
            "format": STATE,
            "version": VERSION,
            "lengths": list(self.lengths),
            "rules": [rule.to_json() for rule in self.rules],
            "costs": list(self.costs),
            "stage": self.stage,
            "start": self.start,
            "step": self.step,
            "log": [end.to_json() for end in self.log],
            "recorded": [end.to_json() for end in self.recorded.values()],
            "memories": [{name: list(values) for name, values in memory.items()} for memory in self._memories],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, recorded: Sequence[Ended] = ()) -> Controller:
        """Makes a controller that resumes from what `state` returned.

        Args:
            recorded: ends that the run logged after that state, which are repeated.

        Raises:
            InputError: not a state, or a newer version.
        """
        if state.get("format") != STATE or not isinstance(state.get("version"), int) or state["version"] > VERSION:
            raise InputError(
                f"not the state of a controller: expected the format {STATE!r} of version {VERSION} or lower, got "
                f"{state.get('format')!r}, version {state.get('version')!r}"
            )
        ends = [*map(Ended.from_json, state["recorded"]), *recorded]
        made = cls(state["lengths"], [rule_from_json(r) for r in state["rules"]], costs=state["costs"], recorded=ends)
        made.stage, made.start, made.step = state["stage"], state["start"], state["step"]
        made.log = [Ended.from_json(end) for end in state["log"]]
        made._memories = [{name: list(values) for name, values in memory.items()} for memory in state["memories"]]
        return made
