"""One stage of a schedule: which sub-network trains, for how long, how it is regularised, what a step costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError
from progc.schedule.point import Point


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """How strongly a stage is regularised; None: as the recipe has it.

    Attributes:
        drop_path: largest rate of stochastic depth (Huang et al. 2016); smaller ones keep their proportion to it.
        dropout: largest rate of dropout, likewise.
        rand_augment: magnitude of RandAugment, 0 to 10; 0 turns it off (Cubuk et al. 2020).
        random_erasing: probability of random erasing (Zhong et al. 2020).
        mixup: alpha of mixup's beta distribution, to 1e6; 0 turns it off (Zhang et al. 2018).
    """

    drop_path: float | None = None
    dropout: float | None = None
    rand_augment: float | None = None
    random_erasing: float | None = None
    mixup: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            top = {"rand_augment": 10.0, "mixup": 1e6}.get(field.name, 1.0)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= top
                or value != value
            ):
                raise InputError(f"regularisation: {field.name} is a number from 0 to {top:g}, not {value!r}")
            object.__setattr__(self, field.name, float(value))

    @classmethod
    def parse(cls, text: str) -> Regularisation:
        """`drop_path=0.1,rand_augment=9`: fields and their values.

        Raises:
            InputError: a text that is none, a field that does not exist or is given twice, or a value out of range.
        """
        found: dict[str, float] = {}
        known = [field.name for field in dataclasses.fields(cls)]
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            try:
                number = float(value)
            except ValueError:
                number = None
            if not equals or number is None or key in found:
                raise InputError(f"regularisation `{text}`: expected name=number, such as drop_path=0.1,rand_augment=9")
            if key not in known:
                raise InputError(f"regularisation: there is no `{key}`; names are {', '.join(known)}")
            found[key] = number
        return cls(**found)

    def to_json(self) -> dict[str, float]:
        """What is set."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Regularisation:
        """What `to_json` gave.

        Raises:
            InputError: an unknown key or a value out of range.
        """
        return cls(**_known(cls, data, "regularisation"))

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.to_json().items())


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What one training step of a stage costs, at the batch size it was counted for.

    Attributes:
        batch: samples per step.
        parameters, trainable: scalar parameters, and those of them that train.
        forward_flops, backward_flops: of matrix products, convolutions and attention; a multiply-add is two.
        activation_bytes: what the backward keeps, without parameters and buffers.
        parameter_bytes, gradient_bytes, optimizer_bytes: of the stage's parameters, gradients of the trainable ones,
            and what the optimizer (Adam, unless said otherwise) keeps for these.
        seconds: measured, or None.
        predicted_seconds: from the graph by usual constants of a device, for ratios; or None.
    """

    batch: int
    parameters: int
    trainable: int
    forward_flops: int
    backward_flops: int
    activation_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    seconds: float | None = None
    predicted_seconds: float | None = None

    @property
    def flops(self) -> int:
        """Of one step, forwards and backwards."""
        return self.forward_flops + self.backward_flops

    @property
    def memory(self) -> int:
        """Bytes that a step needs at most, buffers and workspaces of kernels not counted."""
        return self.activation_bytes + self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageCost:
        """What `to_json` gave.

        Raises:
            InputError: an unknown or a missing key.
        """
        fields = _known(cls, data, "cost")
        missing = {field.name for field in dataclasses.fields(cls)} - fields.keys() - {"seconds", "predicted_seconds"}
        if missing:
            raise InputError(f"cost: key `{sorted(missing)[0]}` is missing; make the plan again")
        return cls(**fields)


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
        fields = _known(cls, data, "stage")
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


def _known(cls: Any, data: Mapping[str, Any], what: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = data.keys() - set(names)
    if unknown:
        raise InputError(f"{what}: unknown key `{sorted(unknown)[0]}`; keys are {', '.join(names)}")
    return dict(data)
