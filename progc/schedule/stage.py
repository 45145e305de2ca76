"""One stage of a schedule: which sub-network trains, for how long, how it is regularised, what a step costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.analysis.costs.counting import StageCost
from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.files.json import known_fields
from progc.schedule.point import Point


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
