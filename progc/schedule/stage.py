"""One stage of a schedule, and how the time of a run divides among the stages. Plain data; imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from progc.analysis.costs.counting import StageCost
from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.files.json import known_fields
from progc.schedule.point import Point

MEASURED, PREDICTED, COUNTED = "measured", "predicted", "counted"
BASES = (MEASURED, PREDICTED, COUNTED)
"""What a share is computed from: measured seconds, seconds predicted from the graph, floating-point operations."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        index: from 0 on.
        point: its network and trainable set, relative to the full program.
        share: its part of the budget (epochs or steps), above 0; shares of a schedule sum to 1.
        sid: its row of the stage identifier's table, None without one.
        regularisation: see there.
        cost: of a step, None if not counted.
    """

    index: int
    point: Point
    share: float
    sid: int | None = None
    regularisation: Regularisation = dataclasses.field(default_factory=Regularisation)
    cost: StageCost | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        data: dict[str, Any] = {"index": self.index, "point": self.point.to_json(), "share": self.share}
        if self.sid is not None:
            data["sid"] = self.sid
        data["regularisation"] = self.regularisation.to_json()
        data["cost"] = None if self.cost is None else self.cost.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        """What `to_json` gave.

        Raises:
            InputError: an unknown or missing key, or a value that is none.
        """
        fields = known_fields(cls, data, "stage")
        for key in ("index", "point", "share"):
            if key not in fields:
                raise InputError(f"stage: key `{key}` is missing")
        share, sid = fields["share"], fields.get("sid")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InputError(f"stage {fields['index']}: share is above 0 and at most 1, not {share!r}")
        if sid is not None and (isinstance(sid, bool) or not isinstance(sid, int) or sid < 0):
            raise InputError(f"stage {fields['index']}: sid is a whole number from 0 on, not {sid!r}")
        for key in ("point", "regularisation", "cost"):
            if not isinstance(fields.get(key) or {}, Mapping):
                raise InputError(f"stage {fields['index']}: {key} is an object, not {fields[key]!r}")
        return cls(
            fields["index"],
            Point.from_json(fields["point"]),
            float(share),
            sid,
            Regularisation.from_json(fields.get("regularisation") or {}),
            StageCost.from_json(fields["cost"]) if fields.get("cost") else None,
        )


def per_sample(stages: Sequence[Stage], basis: str) -> list[float] | None:
    """What one sample of a training step costs in each stage, in the unit of the basis; None where one is unknown."""
    costs = [_cost(stage.cost, basis) for stage in stages]
    known = [cost for cost in costs if cost is not None]
    return known if known and len(known) == len(costs) else None


def time_shares(stages: Sequence[Stage], basis: str | None = None) -> tuple[float, ...] | None:
    """Each stage's part of the time of the whole run; by the first basis that is known, or by this one."""
    for name in BASES if basis is None else (basis,):
        steps = per_sample(stages, name)
        if steps is not None:
            spent = [stage.share * step for stage, step in zip(stages, steps, strict=True)]
            whole = math.fsum(spent)
            return tuple(part / whole for part in spent) if whole else None
    return None


def speedups(stages: Sequence[Stage]) -> dict[str, float]:
    """By basis, how many times longer the full network throughout would take; bases that are unknown are left out.

    The last stage stands for the full network.
    """
    found = {}
    for basis in BASES:
        steps = per_sample(stages, basis)
        spent = math.fsum(stage.share * step for stage, step in zip(stages, steps or (), strict=False))
        if steps and spent:
            found[basis] = steps[-1] / spent
    return found


def bound(stages: Sequence[Stage]) -> float:
    """No stages with these shares are faster: the last one is the full network, the others would have to be free."""
    return 1 / stages[-1].share


def _cost(cost: StageCost | None, basis: str) -> float | None:
    if cost is None:
        return None
    if basis == COUNTED:
        return cost.flops / cost.batch
    seconds = cost.seconds if basis == MEASURED else getattr(cost, "predicted_seconds", None)
    return None if seconds is None else seconds / cost.batch
