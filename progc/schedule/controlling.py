"""When each stage of a run ends: the state machine that applies a schedule's rules.

A `Controller` is told what training observes and says when a stage ends. It is pure: its answers follow from what it
was told (wall seconds are told, never measured), its state is JSON, and every end is recorded. A run that is resumed
repeats the recorded ends.
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
        stage: its index.
        step: steps of the whole run that were done then.
        planned: at which step it would have ended had no rule said otherwise.
        reason: one sentence, for people.
        rule: kind of the rule that ended it, None where its time was up.
        value: what that rule measured.
    """

    stage: int
    step: int
    planned: int
    reason: str
    rule: str | None = None
    value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ended:
        """What `to_json` gave.

        Raises:
            InputError: something else.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"the record of a stage's end cannot be read: {error}; start the run anew") from error


class Controller:
    """Says when each stage of a run ends.

        controller = Controller.of(schedule, total=10_000)
        controller.observe(step, loss=2.3)          # after every step; `step` steps are done
        if controller.ended(): ...                  # the next stage begins

    The budget is kept: a stage's time is its part of what is left, so what one leaves goes to the later ones. No stage
    gets less than `least` or more than `most` of its share, and the last one never less than its share. A rule ends a
    stage early. Late it ends where every rule has seen enough of it and says that it still gets better.

    Attributes:
        stage: index of the present stage; the number of stages after the last one.
        start: at which step it began.
        step: steps done.
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
        """At the beginning of a run.

        Args:
            lengths: planned steps of every stage, at least 1 each.
            costs: of a step of each stage, in any unit; for `Gain(against="next")`. None: all alike.
            recorded: ends of the same run, which are repeated.

        Raises:
            InputError: a stage without a step.
        """
        if not lengths or min(lengths) < 1:
            raise InputError(f"stages of {list(lengths)} steps: every stage needs 1 or more; give more steps")
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
        """For a schedule.

        Args:
            total: length of the run; None: the schedule's own.

        Raises:
            InputError: no length is known, or a stage would get nothing.
        """
        starts = schedule.starts(total)
        length = schedule.total if total is None else total
        assert length is not None
        lengths = [b - a for a, b in zip(starts, [*starts[1:], length], strict=True)]
        return cls(lengths, schedule.rules, costs=schedule.costs(), recorded=recorded)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return sum(self.lengths)

    @property
    def planned(self) -> int:
        """At which step the present stage ends unless a rule says otherwise."""
        if self.stage >= len(self.lengths) - 1:
            return self.total
        left = sum(self.lengths[self.stage :])
        length = round((self.total - self.start) * self.lengths[self.stage] / left)
        return self.start + min(max(length, self._least(self.stage)), self.latest - self.start)

    @property
    def latest(self) -> int:
        """At which step the present stage ends at the latest: later ones get their least, the last one its share."""
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
        """Takes in what was seen after `step` steps of the run, and ends the stage if it is over.

        Args:
            loss: of this step; a value that is not finite is left out.
            validation: a validation's result, if there was one.
            seconds: wall seconds since the run began, with `validation`.

        Raises:
            InputError: steps that go backwards.
        """
        if step < self.step:
            raise InputError(f"step {step} comes after step {self.step}; resume from the state of that step")
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
        """The record of the end that the last observation made; None if the stage goes on."""
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
            late = "a stage cannot be longer" if self.step > planned else "its time is up"
            return self._record(planned, late)
        if self.step >= planned and not (told and all(verdict is not None for verdict in told)):
            return self._record(planned, "its time is up")
        return None

    def _record(self, planned: int, reason: str, rule: str | None = None, value: float | None = None) -> Ended:
        return Ended(self.stage, self.step, planned, reason, rule, value)

    def state(self) -> dict[str, Any]:
        """Everything there is to know, as JSON."""
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
        """Goes on from what `state` gave.

        Args:
            recorded: ends that the run logged after that state, which are repeated.

        Raises:
            InputError: not a state, or of a newer version.
        """
        if state.get("format") != STATE or not isinstance(state.get("version"), int) or state["version"] > VERSION:
            raise InputError(
                f"not the state of a controller: {state.get('format')!r}, version {state.get('version')!r}; expected "
                f"{STATE!r} of version up to {VERSION}"
            )
        ends = [*map(Ended.from_json, state["recorded"]), *recorded]
        made = cls(state["lengths"], [rule_from_json(r) for r in state["rules"]], costs=state["costs"], recorded=ends)
        made.stage, made.start, made.step = state["stage"], state["start"], state["step"]
        made.log = [Ended.from_json(end) for end in state["log"]]
        made._memories = [{name: list(values) for name, values in memory.items()} for memory in state["memories"]]
        return made
