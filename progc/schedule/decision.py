"""What a search decided at a stage: candidates with their scores, the winner, and why. Data, kept in the schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError
from progc.schedule.point import Point


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
