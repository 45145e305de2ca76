"""One stage of a schedule, and how the time of a run divides among the stages. Plain data; imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from progc.analysis.costs.cost import StageCost
from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.files.json import known_fields
from progc.schedule.point import Point

MEASURED, PREDICTED, COUNTED = "measured", "predicted", "counted"
BASES = (MEASURED, PREDICTED, COUNTED)
"""What shares of time are computed from: measured seconds, seconds predicted from the graph, or counted FLOPs."""


Decided = Literal["plan", "open", "training"]
"""Who chooses the network of a stage: the plan; nobody yet, since a search at its boundary will; or such a search."""
DECIDED: tuple[Decided, ...] = ("plan", "open", "training")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a schedule: which sub-network trains, for how long, how it is regularised, what a step costs.

    Attributes:
        index: its position in the schedule, from 0.
        point: the network and its trainable set, relative to the full program. For an open stage that of the linear
            schedule, from which costs are estimated.
        share: its part of the run (epochs or steps), above 0. The shares of a schedule sum to 1.
        sid: its row in the table of the stage identifier; None without a stage identifier.
        regularisation: how strongly samples and network are regularised.
        cost: cost of a training step; None if it is not counted.
        decided: who chooses the network.
        batch: samples per optimizer step, over all ranks; None takes the batch of the run (`train.batch`).
    """

    index: int
    point: Point
    share: float
    sid: int | None = None
    regularisation: Regularisation = dataclasses.field(default_factory=Regularisation)
    cost: StageCost | None = None
    decided: Decided = "plan"
    batch: int | None = None

    @property
    def open(self) -> bool:
        """Whether a search at the boundary still has to choose the network."""
        return self.decided == "open"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        data: dict[str, Any] = {"index": self.index, "point": self.point.to_json(), "share": self.share}
        if self.sid is not None:
            data["sid"] = self.sid
        data["regularisation"] = self.regularisation.to_json()
        data["cost"] = None if self.cost is None else self.cost.to_json()
        if self.decided != "plan":
            data["decided"] = self.decided
        if self.batch is not None:
            data["batch"] = self.batch
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        """Reads a stage that `to_json` wrote.

        Raises:
            InputError: an unknown or missing key, or an invalid value.
        """
        fields = known_fields(cls, data, "stage")
        for key in ("index", "point", "share"):
            if key not in fields:
                raise InputError(f"stage: the key `{key}` is missing; make the plan again")
        share, sid = fields["share"], fields.get("sid")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InputError(
                f"stage {fields['index']}: share: expected a number above 0 and at most 1, got {share!r}; fix the plan"
            )
        if sid is not None and (isinstance(sid, bool) or not isinstance(sid, int) or sid < 0):
            raise InputError(
                f"stage {fields['index']}: sid: expected an integer of at least 0, got {sid!r}; fix the plan"
            )
        if fields.get("decided", "plan") not in DECIDED:
            raise InputError(
                f"stage {fields['index']}: decided: expected plan, open or training, got {fields['decided']!r}; fix "
                "the plan"
            )
        batch = fields.get("batch")
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
            raise InputError(
                f"stage {fields['index']}: batch: expected an integer of at least 1, got {batch!r}; fix the plan"
            )
        for key in ("point", "regularisation", "cost"):
            if not isinstance(fields.get(key) or {}, Mapping):
                raise InputError(
                    f"stage {fields['index']}: {key}: expected an object, got {fields[key]!r}; fix the plan"
                )
        return cls(
            fields["index"],
            Point.from_json(fields["point"]),
            float(share),
            sid,
            Regularisation.from_json(fields.get("regularisation") or {}),
            StageCost.from_json(fields["cost"]) if fields.get("cost") else None,
            fields.get("decided", "plan"),
            batch,
        )


def per_sample(stages: Sequence[Stage], basis: str) -> list[float] | None:
    """Returns the training cost of one sample in each stage: seconds, or FLOPs. None if any of them is unknown."""
    costs = [_cost(stage.cost, basis) for stage in stages]
    known = [cost for cost in costs if cost is not None]
    return known if known and len(known) == len(costs) else None


def unit_sizes(stages: Sequence[Stage], unit: str = "epochs") -> list[float]:
    """Returns the size of a unit of the schedule in each stage, in samples and relative to the last stage.

    An epoch has the same samples in all stages; a step has those of a batch, which stages may have of their own.

    Args:
        unit: `epochs` or `steps`.
    """
    batches = [stage.batch or (None if stage.cost is None else stage.cost.batch) for stage in stages]
    known = [batch for batch in batches if batch is not None]
    if unit == "epochs" or len(known) < len(stages):
        return [1.0] * len(stages)
    return [batch / known[-1] for batch in known]


def sample_shares(stages: Sequence[Stage], unit: str = "epochs") -> list[float]:
    """Returns the part of all samples of the run that each stage trains on; arguments as for `unit_sizes`."""
    relative = unit_sizes(stages, unit)
    if len(set(relative)) <= 1:
        return [stage.share for stage in stages]
    parts = [stage.share * size for stage, size in zip(stages, relative, strict=True)]
    whole = math.fsum(parts)
    return [part / whole for part in parts]


def time_shares(stages: Sequence[Stage], basis: str | None = None, unit: str = "epochs") -> tuple[float, ...] | None:
    """Returns the part of the whole run's time that each stage takes; None if costs are unknown.

    Args:
        basis: one of `BASES`; None takes the first one that is known.
        unit: what the shares of the stages are parts of: `epochs` or `steps`.
    """
    for name in BASES if basis is None else (basis,):
        costs = per_sample(stages, name)
        if costs is not None:
            spent = [part * cost for part, cost in zip(sample_shares(stages, unit), costs, strict=True)]
            whole = math.fsum(spent)
            return tuple(part / whole for part in spent) if whole else None
    return None


def speedups(stages: Sequence[Stage], unit: str = "epochs") -> dict[str, float]:
    """Returns, for every known basis, how many times longer training the full network in all stages would take.

    The full network would train on the same samples, and its cost per sample is that of the last stage.

    Args:
        unit: as for `time_shares`.
    """
    found = {}
    for basis in BASES:
        costs = per_sample(stages, basis)
        spent = math.fsum(part * cost for part, cost in zip(sample_shares(stages, unit), costs or (), strict=False))
        if costs and spent:
            found[basis] = costs[-1] / spent
    return found


def bound(stages: Sequence[Stage], unit: str = "epochs") -> float:
    """Returns an upper bound of the speedup, reached if all stages but the last one cost nothing.

    Args:
        unit: as for `time_shares`.
    """
    return 1 / sample_shares(stages, unit)[-1]


def _cost(cost: StageCost | None, basis: str) -> float | None:
    if cost is None:
        return None
    if basis == COUNTED:
        return cost.flops / cost.batch
    seconds = cost.seconds if basis == MEASURED else getattr(cost, "predicted_seconds", None)
    return None if seconds is None else seconds / cost.batch
