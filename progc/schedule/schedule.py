"""The schedule of a training run as data: its stages, the growth space they are from, and what a search decided.

A schedule is read from and written to versioned JSON. It belongs to the structure of one network (`ModelRef`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.files.reading import MAX_GIVEN, read_object
from progc.schedule.point import Point
from progc.schedule.rules import Rule, rule_from_json
from progc.schedule.space import Space
from progc.schedule.stage import COUNTED, MEASURED, Stage, speedups, unit_sizes
from progc.schedule.stage_shares import begins

if TYPE_CHECKING:
    from progc.ir.program import Program

FORMAT = "progc schedule"
PLAN = "plan.json"
"""The schedule in the folder of a run."""
VERSION = 1
STRATEGIES = ("linear", "one-shot", "zero-shot")
SEARCHES = STRATEGIES[1:]
"""Strategies that can decide a stage in training."""
MODES = ("default", "reference")
UNITS = ("epochs", "steps")
DERIVED = ("speedup", "time_shares", "seconds", "versions")
"""Keys that `progc plan --json` adds to a schedule; they are ignored when it is read."""


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """The network that a schedule is for.

    Attributes:
        class_name: class of the user's module.
        fingerprint: fingerprint of the full program, without values of weights and trainable set (see `structure`).
        parameters: number of parameters of the full program.
        source: text of the source; None if the schedule was made in Python.
        target: text of `--to`; None without a target. The full network is the source grown to it.
    """

    class_name: str
    fingerprint: str
    parameters: int
    source: str | None = None
    target: str | None = None

    @classmethod
    def of(cls, program: Program, source: str | None = None, target: str | None = None) -> ModelRef:
        """Returns the reference to a full program."""
        return cls(program.class_name, structure(program), program.num_parameters(), source, target)


def structure(program: Program) -> str:
    """Returns the sha256 (hex) of a program's structure: its fingerprint with everything trainable."""
    from progc.ir.graphs import fingerprint
    from progc.transforms.freezing.setting import can_train, set_trainable

    everything = {name for name, tensor in program.parameters() if can_train(tensor)}
    return fingerprint(set_trainable(program, everything))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A point that a search evaluated.

    Attributes:
        point: the sub-network and its trainable set.
        scores: what was measured, by name (`ntk`, `zico`, `loss`, `time` in seconds, ...); NaN if a measurement failed.
        ranks: ranks of the scores, by name: 1 for the best, equal ones share a rank (1, 1, 3).
        total: the number that decides; the winner has the smallest one.
    """

    point: Point
    scores: Mapping[str, float]
    ranks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    total: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object; NaN becomes null."""
        return {
            "point": self.point.to_json(),
            "scores": dict(self.scores),
            "ranks": dict(self.ranks),
            "total": self.total,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Reads a candidate that `to_json` wrote.

        Raises:
            InputError: an invalid point.
        """
        scores = {name: _number(value) for name, value in data.get("scores", {}).items()}
        return cls(
            Point.from_json(data.get("point", {})), scores, dict(data.get("ranks", {})), _number(data.get("total"))
        )


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a search decided at one stage.

    Attributes:
        stage: index of the stage.
        candidates: the candidates, in the order in which they were evaluated.
        winner: index of the chosen candidate.
        reason: one sentence that says why.
        settings: settings of the search (batches, samples, weights, alpha, ...).
        seconds: duration of the search in seconds; None if it was not measured.
    """

    stage: int
    candidates: tuple[Candidate, ...]
    winner: int
    reason: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "stage": self.stage,
            "winner": self.winner,
            "reason": self.reason,
            "settings": dict(self.settings),
            "seconds": self.seconds,
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """Reads a decision that `to_json` wrote.

        Raises:
            InputError: the winner is not one of the candidates.
        """
        candidates = tuple(Candidate.from_json(item) for item in data.get("candidates", ()))
        winner = data.get("winner")
        if not isinstance(winner, int) or not 0 <= winner < len(candidates):
            raise InputError(
                f"decision of stage {data.get('stage')}: winner: expected the index of one of {len(candidates)} "
                f"candidates, got {winner!r}; make the plan again"
            )
        return cls(
            int(data.get("stage", 0)),
            candidates,
            winner,
            str(data.get("reason", "")),
            dict(data.get("settings", {})),
            data.get("seconds"),
        )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The stages of one training run.

    Attributes:
        model: the full network.
        strategy: one of `STRATEGIES`, or the name of a strategy of another package.
        stages: the stages in order; the last one is the full network.
        space: the growth space that the stages were chosen from.
        mode: `reference` follows the published procedure, `default` is ours.
        seed: seed of the search.
        total: length of the run in `unit`; None: it is given to the trainer.
        unit: `epochs` or `steps`.
        decisions: what a search decided, one for each stage that was searched.
        settings: other options that the plan was made with.
        notes: sentences that say what was rounded and what could not vary.
        rules: rules that end stages early or late (`progc.schedule.rules`); without any, each stage has its share.

    Raises:
        InputError: no stage, shares that do not sum to 1, or an unknown strategy, mode or unit.
    """

    model: ModelRef
    strategy: str
    stages: tuple[Stage, ...]
    space: Space
    mode: str = "default"
    seed: int = 0
    total: int | None = None
    unit: str = "epochs"
    decisions: tuple[Decision, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def regularisations(self) -> list[Regularisation]:
        """The regularisation of each stage, in order."""
        return [stage.regularisation for stage in self.stages]

    def __post_init__(self) -> None:
        for what, value, known in (
            ("mode", self.mode, MODES),
            ("unit", self.unit, UNITS),
        ):
            if value not in known:
                raise InputError(
                    f"schedule: {what}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}; fix the plan"
                )
        if not (isinstance(self.strategy, str) and self.strategy.isprintable() and self.strategy.strip()):
            raise InputError(
                f"schedule: strategy: expected {', '.join(STRATEGIES)} or the name of another one, got "
                f"{self.strategy!r}; fix the plan"
            )
        if not _whole(self.seed):
            raise InputError(f"schedule: seed: expected an integer, got {self.seed!r}; fix the plan")
        if self.total is not None and not (_whole(self.total) and self.total >= 1):
            raise InputError(
                f"schedule: total: expected an integer of at least 1, or null, got {self.total!r}; fix the plan"
            )
        if not self.stages:
            raise InputError("schedule: expected at least one stage, got none; make the plan with --stages 1 or more")
        if self.stages[-1].open or (self.open and self.strategy not in SEARCHES):
            raise InputError(
                f"schedule: the last stage is the full network, and the {self.strategy} strategy does not search in "
                f"training; fix `decided` of stage {self.open[-1]}"
            )
        indices = [stage.index for stage in self.stages]
        if indices != list(range(len(indices))):
            raise InputError(f"schedule: expected stages numbered from 0 in order, got {indices}; fix their index")
        whole = math.fsum(stage.share for stage in self.stages)
        if abs(whole - 1) > 1e-6:
            raise InputError(f"schedule: expected shares of the stages that sum to 1, got {whole:g}; fix them")

    @property
    def open(self) -> tuple[int, ...]:
        """Indices of the stages whose network a search in training still has to choose."""
        return tuple(stage.index for stage in self.stages if stage.open)

    def batches(self, default: int) -> list[int]:
        """Returns the samples per optimizer step of each stage.

        Args:
            default: batch of stages that have none of their own.
        """
        return [default if stage.batch is None else stage.batch for stage in self.stages]

    def with_batches(self, batches: Sequence[int]) -> Schedule:
        """Returns the schedule with a batch for each stage; the schedule itself if none are given."""
        if not batches:
            return self
        pairs = zip(self.stages, batches, strict=True)
        return dataclasses.replace(self, stages=tuple(dataclasses.replace(stage, batch=own) for stage, own in pairs))

    def with_decision(self, stage: Stage, decision: Decision) -> Schedule:
        """Returns the schedule with the network of an open stage chosen.

        Args:
            stage: the stage at its new point.
            decision: what the search found.
        """
        assert self.stages[stage.index].open and decision.stage == stage.index
        chosen = dataclasses.replace(stage, decided="training")
        stages = tuple(chosen if own.index == stage.index else own for own in self.stages)
        return dataclasses.replace(self, stages=stages, decisions=(*self.decisions, decision))

    @property
    def reopened(self) -> Schedule:
        """The schedule before any search in training decided a stage."""
        stages = tuple(
            dataclasses.replace(stage, decided="open") if stage.decided == "training" else stage
            for stage in self.stages
        )
        kept = tuple(own for own in self.decisions if not stages[own.stage].open)
        return dataclasses.replace(self, stages=stages, decisions=kept)

    @property
    def closed(self) -> Schedule:
        """The schedule as a plan of its own: what searches in training decided is decided by the plan."""
        stages = tuple(
            dataclasses.replace(stage, decided="plan") if stage.decided == "training" else stage
            for stage in self.stages
        )
        return dataclasses.replace(self, stages=stages)

    def same_run(self, other: Schedule) -> bool:
        """Returns whether two schedules are of one run: equal but for what searches in training decided."""
        return self._planned() == other._planned()

    def _planned(self) -> dict[str, Any]:
        data = self.reopened.to_json()
        for stage in data["stages"]:
            if stage.get("decided") == "open":  # estimates, which a decision replaces
                for key in ("point", "regularisation", "cost"):
                    del stage[key]
        return data

    def starts(self, total: int | None = None) -> list[int]:
        """Returns the epoch (or step) at which each stage begins: the shares before it times the length, rounded down.

        Args:
            total: length of the run in the schedule's unit; None takes the schedule's own.

        Raises:
            InputError: the length is not known, or a stage would have no epoch (or step).
        """
        length = self.total if total is None else total
        if length is None:
            raise InputError("schedule: the length of the run is not known; give the number of epochs or steps")
        try:
            return begins([stage.share for stage in self.stages], length, self.unit)
        except InputError as error:
            raise InputError(f"schedule: {error}") from error

    def costs(self) -> list[float] | None:
        """Returns the relative cost of an epoch (or step) of each stage; None without costs.

        From seconds if all are known, else from FLOPs: per sample, times the samples relative to the last stage.
        """
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        if len(known) < len(self.stages):
            return None
        relative = unit_sizes(self.stages, self.unit)
        if all(cost.seconds for cost in known):
            return [(cost.seconds or 0.0) / cost.batch * size for cost, size in zip(known, relative, strict=True)]
        if all(cost.flops for cost in known):
            return [cost.flops / cost.batch * size for cost, size in zip(known, relative, strict=True)]
        return None

    def later(self, index: int, total: int | None = None) -> float | None:
        """Returns how many epochs or steps of stage `index` cost as much as all later stages; None without costs.

        Args:
            total: length of the run, as for `starts`.
        """
        costs = self.costs()
        if costs is None:
            return None
        length = self.total if total is None else total
        ends = [*self.starts(total)[1:], length or 0]
        return sum((ends[k] - ends[k - 1]) * costs[k] / costs[index] for k in range(index + 1, len(costs)))

    def check(self, program: Program) -> None:
        """Checks that the schedule is for the full program `program`.

        Raises:
            InputError: it is for another network.
        """
        if structure(program) != self.model.fingerprint:
            raise InputError(
                f"the plan is for {self.model.class_name} with {self.model.parameters:,} parameters, not for this "
                f"{program.class_name} with {program.num_parameters():,}; make a plan for this model"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": dataclasses.asdict(self.model),
            "strategy": self.strategy,
            "mode": self.mode,
            "seed": self.seed,
            "total": self.total,
            "unit": self.unit,
            "stages": [stage.to_json() for stage in self.stages],
            "space": self.space.to_json(),
            "decisions": [decision.to_json() for decision in self.decisions],
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "rules": [rule.to_json() for rule in self.rules],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """Reads a schedule that `to_json` wrote, edited or not.

        Raises:
            InputError: not a schedule, a newer version, or an invalid value.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"not a schedule: expected the format {FORMAT!r}, got {data.get('format')!r}")
        version = data.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise InputError(f"schedule: expected a version of at most {VERSION}, got {version!r}; update progc")
        names = {field.name for field in dataclasses.fields(cls)} | {"format", "version"}
        unknown = data.keys() - names - set(DERIVED)
        if unknown:
            raise InputError(f"schedule: unknown key `{sorted(unknown)[0]}`; keys are {', '.join(sorted(names))}")
        try:
            return cls(
                ModelRef(**data["model"]),
                data["strategy"],
                tuple(Stage.from_json(item) for item in data["stages"]),
                Space.from_json(data["space"]),
                data.get("mode", "default"),
                data.get("seed", 0),
                data.get("total"),
                data.get("unit", "epochs"),
                tuple(Decision.from_json(item) for item in data.get("decisions", ())),
                dict(data.get("settings", {})),
                notes=tuple(str(note) for note in data.get("notes", ())),
                rules=tuple(rule_from_json(item) for item in data.get("rules", ())),
            )
        except KeyError as error:
            raise InputError(f"schedule: the key {error} is missing; make the plan again") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(f"schedule: invalid value ({error}); make the plan again") from error

    @classmethod
    def read(cls, path: str | Path) -> Schedule:
        """Reads a file written by `write` or by `progc plan --out`.

        Raises:
            InputError: the file cannot be read, or is not JSON, or not a schedule; the message names the file.
        """
        try:
            data = read_object(Path(path), MAX_GIVEN, links=True)
        except InputError as error:
            reason = str(error).removeprefix(f"{path} ")
            raise InputError(
                f"{path} cannot be read as a plan: it {reason}; expected JSON written by progc plan"
            ) from error
        try:
            return cls.from_json(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Writes the schedule as JSON, atomically.

        Raises:
            InputError: the file cannot be written.
        """
        from progc.files.writing import replace_json

        replace_json(Path(path), self.to_json())

    @property
    def speedup(self) -> float | None:
        """How many times longer training the full network throughout would take; None without costs.

        Computed from measured seconds if every stage has them, else from floating-point operations.
        """
        found = speedups(self.stages, self.unit)
        return found.get(MEASURED, found.get(COUNTED))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
