"""The cost of one training step as data. Imports no torch: plans are read and printed without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError
from progc.files.json import known_fields


@dataclasses.dataclass(frozen=True)
class StageCost:
    """The cost of one training step of a stage.

    Attributes:
        batch: batch size, in samples.
        parameters, trainable: number of parameters, and of trainable parameters.
        forward_flops, backward_flops: FLOPs of matrix products, convolutions and attention; a multiply-add is 2 FLOPs.
        activation_bytes: bytes saved for the backward pass, without parameters and buffers.
        parameter_bytes, gradient_bytes, optimizer_bytes: bytes of the parameters, of the gradients of the trainable
            parameters, and of the optimizer state for these (Adam by default).
        seconds: measured seconds, or None.
        predicted_seconds: seconds predicted from the graph and typical constants of a device, for ratios; or None.
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
        """FLOPs of one step, forward and backward."""
        return self.forward_flops + self.backward_flops

    @property
    def memory(self) -> int:
        """Upper bound of the bytes of a step, without buffers and workspaces of kernels."""
        return self.activation_bytes + self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    def to_json(self) -> dict[str, Any]:
        """Returns all fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageCost:
        """Reads the result of `to_json`.

        Raises:
            InputError: a key is unknown or missing.
        """
        fields = known_fields(cls, data, "cost")
        missing = {field.name for field in dataclasses.fields(cls)} - fields.keys() - {"seconds", "predicted_seconds"}
        if missing:
            raise InputError(f"cost: key `{sorted(missing)[0]}` is missing; make the plan again")
        return cls(**fields)
