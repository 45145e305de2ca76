"""The schedule: stages as data. JSON in, JSON out, versioned; tied to the structure of the network it was made for.

What a search decided at a stage: candidates with their scores, the winner, and why. Data, kept in the schedule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.files.json import read_object
from progc.schedule.point import Point
from progc.schedule.rules import Rule, rule_from_json
from progc.schedule.space import Space
from progc.schedule.stage import COUNTED, MEASURED, Stage, speedups

if TYPE_CHECKING:
    from progc.ir.program import Program

FORMAT = "progc schedule"
VERSION = 1
STRATEGIES = ("linear", "one-shot", "zero-shot")
MODES = ("default", "reference")
UNITS = ("epochs", "steps")
DERIVED = ("speedup", "time_shares", "seconds", "versions")
"""What `progc plan --json` says beside the schedule; not read."""


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """Which network a schedule is for.

    Attributes:
        source: text of the source, None if the schedule was made from Python.
        target: text of `--to`, None without one. The full network is the source grown to it.
        class_name: of the user's module.
        fingerprint: of the full program, values of weights and the trainable set left out.
        parameters: of the full program.
    """

    class_name: str
    fingerprint: str
    parameters: int
    source: str | None = None
    target: str | None = None

    @classmethod
    def of(cls, program: Program, source: str | None = None, target: str | None = None) -> ModelRef:
        """The reference to a full program."""
        return cls(program.class_name, structure(program), program.num_parameters(), source, target)


def structure(program: Program) -> str:
    """sha256 (hex) of a program's structure: its fingerprint with everything trainable."""
    from progc.ir.graphs import fingerprint
    from progc.transforms.freezing.setting import can_train, set_trainable

    everything = {name for name, tensor in program.parameters() if can_train(tensor)}
    return fingerprint(set_trainable(program, everything))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Stages of one training run.

    Attributes:
        model: the full network.
        strategy: one of `STRATEGIES`.
        stages: in order; the last one is the full network.
        space: what the stages were chosen from.
        mode: `reference` follows the published procedure, `default` ours.
        seed: of the search.
        total: length of the run in `unit`, None: given to the trainer.
        unit: `epochs` or `steps`.
        decisions: of a search, one for each stage that was searched.
        settings: other options that the plan was made with.
        notes: what was rounded and what could not vary, in sentences.
        rules: by which stages end early or late (progc/schedule/rules.py); none: each has its share.

    Raises:
        InputError: no stage, shares that do not sum to 1, an unknown strategy, mode or unit.
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
            ("strategy", self.strategy, STRATEGIES),
            ("mode", self.mode, MODES),
            ("unit", self.unit, UNITS),
        ):
            if value not in known:
                raise InputError(f"schedule: {what} is {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
        if not _whole(self.seed):
            raise InputError(f"schedule: seed is a whole number, not {self.seed!r}")
        if self.total is not None and not (_whole(self.total) and self.total >= 1):
            raise InputError(f"schedule: total is a whole number from 1 on, or null, not {self.total!r}")
        if not self.stages:
            raise InputError("schedule: there is no stage; make the plan with --stages 1 or more")
        if [stage.index for stage in self.stages] != list(range(len(self.stages))):
            raise InputError("schedule: stages are numbered from 0 in order; mend their index")
        whole = math.fsum(stage.share for stage in self.stages)
        if abs(whole - 1) > 1e-6:
            raise InputError(f"schedule: shares of the stages sum to {whole:g}, not to 1; mend them")

    def starts(self, total: int | None = None) -> list[int]:
        """At which epoch (or step) each stage begins: the parts before it, rounded down.

        Args:
            total: length of the run; None: the schedule's own.

        Raises:
            InputError: no length is known, or a stage would get nothing.
        """
        length = self.total if total is None else total
        if length is None:
            raise InputError("schedule: its length is not known; give the number of epochs or steps")
        # As fractions: thirds of a length add up to whole numbers, which sums of floats miss by a rounding.
        shares = [Fraction(stage.share).limit_denominator(10**6) for stage in self.stages]
        found = [math.floor(length * sum(shares[:k], Fraction(0))) for k in range(len(shares))]
        if any(b <= a for a, b in zip(found, [*found[1:], length], strict=True)):
            raise InputError(f"schedule: {length} {self.unit} are too few for {len(self.stages)} stages; give more")
        return found

    def costs(self) -> list[float] | None:
        """What training on a sample costs in each stage: seconds where all are known, else operations, or None."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        if len(known) == len(self.stages) and all(cost.seconds for cost in known):
            return [(cost.seconds or 0.0) / cost.batch for cost in known]
        if len(known) == len(self.stages) and all(cost.flops for cost in known):
            return [cost.flops / cost.batch for cost in known]
        return None

    def later(self, index: int, total: int | None = None) -> float | None:
        """How many epochs or steps of stage `index` cost as much as all stages behind it; None where costs are unknown.

        Args:
            total: length of the run, as for `starts`.
        """
        costs = self.costs()
        if costs is None:
            return None
        length = self.total if total is None else total
        ends = [*self.starts(total)[1:], length or 0]
        behind = range(index + 1, len(costs))
        return sum((ends[k] - ends[k - 1]) * costs[k] / costs[index] for k in behind)

    def check(self, program: Program) -> None:
        """Raises InputError if the schedule is for another network than the full program `program`."""
        if structure(program) != self.model.fingerprint:
            raise InputError(
                f"the plan is for {self.model.class_name} with {self.model.parameters:,} parameters, not for this "
                f"{program.class_name} with {program.num_parameters():,}; make it again for this model"
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
        """What `to_json` gave, edited or not.

        Raises:
            InputError: not a schedule, of a newer version, or with a value that is none.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"not a schedule: its format is {data.get('format')!r}, expected {FORMAT!r}")
        version = data.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise InputError(f"the schedule has version {version!r}, this progc reads up to {VERSION}; update progc")
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
            raise InputError(f"schedule: key {error} is missing; make the plan again") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(f"schedule: a value is none that belongs there ({error}); make the plan again") from error

    @classmethod
    def read(cls, path: str | Path) -> Schedule:
        """Reads a file written by `write` or by `progc plan --out`.

        Raises:
            InputError: it cannot be read, is no JSON, or no schedule; names the file.
        """
        try:
            data = read_object(Path(path))
        except InputError as error:
            reason = str(error).removeprefix(f"{path} ")
            raise InputError(
                f"{path} cannot be read as a plan: {reason}; expected JSON written by progc plan"
            ) from error
        try:
            return cls.from_json(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Writes the schedule as JSON: whole, or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        from progc.files.writing import write_file

        write_file(Path(path), self.to_json())

    @property
    def speedup(self) -> float | None:
        """Of the stages, by their costs, over training the full network throughout; None without costs.

        Measured seconds where every stage has them, else floating-point operations.
        """
        found = speedups(self.stages)
        return found.get(MEASURED, found.get(COUNTED))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One point that was looked at.

    Attributes:
        point: the candidate.
        scores: what was measured, by name (`ntk`, `zico`, `loss`, `time` in seconds, ...); NaN where it could not be.
        ranks: 1 for the best, by name of the score; competition ranks (1, 1, 3).
        total: what the winner is the smallest of.
    """

    point: Point
    scores: Mapping[str, float]
    ranks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    total: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON object; NaN becomes null."""
        return {
            "point": self.point.to_json(),
            "scores": dict(self.scores),
            "ranks": dict(self.ranks),
            "total": self.total,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """What `to_json` gave.

        Raises:
            InputError: a point that is none.
        """
        scores = {name: _number(value) for name, value in data.get("scores", {}).items()}
        return cls(
            Point.from_json(data.get("point", {})), scores, dict(data.get("ranks", {})), _number(data.get("total"))
        )


@dataclasses.dataclass(frozen=True)
class Decision:
    """The choice at one stage.

    Attributes:
        stage: its index.
        candidates: in the order in which they were looked at.
        winner: index of the chosen one.
        reason: one sentence, for people.
        settings: what the search was done with (batches, samples, weights, alpha, ...).
        seconds: what the search took.
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
        """What `to_json` gave.

        Raises:
            InputError: a winner that is no candidate.
        """
        candidates = tuple(Candidate.from_json(item) for item in data.get("candidates", ()))
        winner = data.get("winner")
        if not isinstance(winner, int) or not 0 <= winner < len(candidates):
            raise InputError(f"decision of stage {data.get('stage')}: winner {winner!r} is no candidate")
        return cls(
            int(data.get("stage", 0)),
            candidates,
            winner,
            str(data.get("reason", "")),
            dict(data.get("settings", {})),
            data.get("seconds"),
        )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
