"""The float64 check of a growth, and how close "lossless" has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from progc.ir.check import Difference, compare
from progc.ir.deferred import defer, values
from progc.ir.program import Program
from progc.lift.lift import Lift

TOLERANCE = 1e-9
"""Largest relative difference in float64 that lossless growth may show."""

ROUNDED = 1e-6
"""The same where a factor such as 1/sqrt(2), or the sum with a row, had to be rounded to the parameters' dtype."""

_STIR = 0.02
"""Standard deviation of the noise on weights that would hide errors."""


def measure(before: Program, after: Program, lifts: Sequence[Lift], *, seed: int) -> Difference:
    """How far a grown program is from its source, in float64 and eval mode.

    A network that answers zero to everything (a head that starts at zero) would agree with any other such network.
    Both are then compared with noise on the source's parameters, grown by the same lifts.

    Raises:
        CheckError: as in `progc.ir.check.compare`.
    """
    difference = compare(before, after, seed=seed)
    if not difference.silent:
        return difference
    tensors: Mapping[str, torch.Tensor] = _stirred(before, seed)
    source = before.replace(tensors=tensors)
    for lift in lifts:
        tensors = lift.apply(tensors)  # deferred: no noisy copy of either network exists as a whole
    return compare(source, after.replace(tensors={name: tensors[name] for name in after.tensors}), seed=seed)


def tolerance(lifts: Sequence[Lift]) -> float:
    """The relative difference that lossless growth by these lifts may show."""
    factors = {
        value for lift in lifts for entry in lift.tensors for scale in entry.scales for value in scale.values if value
    }
    if any(entry.adds for lift in lifts for entry in lift.tensors):
        return ROUNDED
    return ROUNDED if any(math.frexp(value)[0] != 0.5 for value in factors) else TOLERANCE


def _stirred(program: Program, seed: int) -> dict[str, torch.Tensor]:
    """The program's tensors with noise on its parameters; tied ones stay one object."""
    made: dict[int, torch.Tensor] = {}
    for number, tensor in enumerate(program.tensors.values()):
        if id(tensor) not in made:
            stir = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            made[id(tensor)] = defer(_noisy(tensor, seed + number), tensor) if stir else tensor
    return {name: made[id(tensor)] for name, tensor in program.tensors.items()}


def _noisy(tensor: torch.Tensor, seed: int) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).mul_(_STIR)
        value = values(tensor).detach()
        return value + noise.to(value)

    return make
