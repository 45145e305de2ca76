"""What one training step costs, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError
from progc.files.keys import known_fields


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
        fields = known_fields(cls, data, "cost")
        missing = {field.name for field in dataclasses.fields(cls)} - fields.keys() - {"seconds", "predicted_seconds"}
        if missing:
            raise InputError(f"cost: key `{sorted(missing)[0]}` is missing; make the plan again")
        return cls(**fields)
