"""Predicts the seconds of a step from its operations: a roofline model (Williams et al. 2009) per kind of operation.

The time of an operation is the larger of its arithmetic time and its memory time, plus the time of a call. FLOPs alone
predict small networks poorly, because they leave out norms, activations and the overhead of small operations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from progc.analysis.costs.counting import Step
from progc.analysis.costs.operations import KINDS, PLAIN, Operation
from progc.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rate:
    """The speed of one kind of operation.

    Attributes:
        flops: FLOPs per second.
        bytes: bytes read and written per second.
        call: overhead of a call, in seconds.
    """

    flops: float
    bytes: float
    call: float

    def seconds(self, operation: Operation) -> float:
        """Returns the seconds of one operation, without the overhead of the call."""
        return max(operation.flops / self.flops, operation.bytes / self.bytes)


@dataclasses.dataclass(frozen=True)
class Machine:
    """A device that runs training steps.

    Attributes:
        name: name in tables.
        rates: a rate for each kind in `KINDS`.
        optimizer: bytes of trainable parameters that Adam updates per second, and overhead per tensor in seconds.
        overlap: True if calls are issued while earlier operations still run (accelerators), so that only the longer
            of call and operation counts.
    """

    name: str
    rates: Mapping[str, Rate]
    optimizer: Rate
    overlap: bool = False

    def __post_init__(self) -> None:
        missing = [kind for kind in KINDS if kind not in self.rates]
        if missing:
            raise InputError(f"machine {self.name}: a rate for `{missing[0]}` is missing; kinds are {', '.join(KINDS)}")

    def seconds(self, step: Step, *, learning: bool = True) -> float:
        """Returns the seconds of one training step: forward, backward and, with `learning`, optimizer; no loss."""
        parts = [
            self._total(self.rates[operation.kind].call, self.rates[operation.kind].seconds(operation)) * times
            for found in (step.forward, step.backward)
            for operation, times in found.items()
        ]
        if learning:
            parts += [self._total(self.optimizer.call, size / self.optimizer.bytes) for _, size in step.trainable]
        return math.fsum(parts)

    def _total(self, call: float, work: float) -> float:
        return max(call, work) if self.overlap else call + work

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return dataclasses.asdict(self)


def _rates(matmul: float, bandwidth: float, call: float) -> dict[str, Rate]:
    """Returns the rates of a processor from the speed of its matrix products, its bandwidth and its call overhead.

    The proportions are those of the CPU and GPU kernels of torch 2.14 (bench/plan.py); only ratios of times matter.
    """
    free = math.inf
    return {
        "matmul": Rate(matmul, bandwidth, call),
        "convolution": Rate(0.6 * matmul, bandwidth, 4 * call),
        "grouped": Rate(0.1 * matmul, 0.5 * bandwidth, 4 * call),
        "attention": Rate(0.5 * matmul, bandwidth, 4 * call),
        "transcendental": Rate(free, 0.3 * bandwidth, call),
        "norm": Rate(free, 0.5 * bandwidth, 2 * call),
        PLAIN: Rate(free, bandwidth, call),
        "view": Rate(free, free, 0.3 * call),
    }


_DEFAULTS = {
    "cpu": Machine("CPU, one core", _rates(9e10, 1.5e10, 3e-6), Rate(math.inf, 2e9, 2e-5)),
    "cuda": Machine("GPU, single precision", _rates(6e13, 1.2e12, 6e-6), Rate(math.inf, 8e10, 2e-6), overlap=True),
}


def default_machine(device: str = "cpu") -> Machine:
    """Returns rough constants of a kind of device, for ratios of times; `calibrate` measures the current machine.

    Args:
        device: torch name of the device (`cpu`, `cuda:1`); every accelerator counts as a GPU.
    """
    return _DEFAULTS["cpu" if device.partition(":")[0] in ("cpu", "meta") else "cuda"]
