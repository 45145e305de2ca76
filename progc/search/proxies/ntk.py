"""`ntk`: condition number of the empirical neural tangent kernel (TE-NAS; Chen, Gong & Wang, ICLR 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.search.proxies import samples
from progc.search.proxies.base import TwoModes, check_at_least
from progc.search.proxies.per_sample import kernel
from progc.search.proxies.running import OBJECTIVES, Network


@dataclasses.dataclass(frozen=True)
class NTK(TwoModes):
    """Condition number of the kernel K_ij = <J_i, J_j> of the gradients J_i of samples.

    Default: J_i is the gradient of the loss of sample i with respect to all trainable parameters, including norms and
    biases. The score is -log10 of the condition number, averaged over `kernels` kernels of `samples` samples each. A
    smallest eigenvalue below the rounding errors of the gradients is replaced by these, so that a singular kernel has
    the worst score and not the best.

    Reference (AutoProg-Zero): J_i is the gradient of the sum of all output elements with respect to the trainable
    parameters that have `weight` in their name. The score is minus the condition number, averaged over the batches. NaN
    becomes zero, and a negative smallest eigenvalue is not changed.

    Attributes:
        mode: `default` or `reference`.
        samples: samples per kernel, at least 2 (default mode).
        kernels: largest number of kernels; fewer if there are not enough samples (default mode).
        of: what is differentiated, `loss` or `outputs` (default mode).

    Raises:
        InputError: an option out of range.
    """

    name: ClassVar[str] = "ntk"
    ranks_unfreezing: ClassVar[bool] = True

    samples: int = 8
    kernels: int = 2
    of: str = "loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self.name, "samples", self.samples, 2)
        check_at_least(self.name, "kernels", self.kernels, 1)
        if self.of not in OBJECTIVES:
            raise InputError(f"proxy ntk: of: expected {' or '.join(OBJECTIVES)}, got `{self.of}`")

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """See `progc.search.proxies.base.Proxy.score`; never NaN in reference mode."""
        found = self.matrices(program, batches, task, seed=seed, stage=stage)
        if self.mode == "reference":
            return -sum(published_condition(matrix) for matrix in found) / len(found)
        rounding = max(torch.finfo(t.dtype).eps for _, t in program.parameters() if t.is_floating_point())
        return -sum(log_condition(matrix, rounding) for matrix in found) / len(found)

    def matrices(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> list[Tensor]:
        """Returns the kernels, each `[samples, samples]` in float64; one per batch in reference mode.

        Raises:
            InputError: too few samples, or nothing trains.
        """
        network = Network(program, task, stage)
        given = network.fitted(batches)
        wanted = set(network.trainable)
        if self.mode == "reference":
            pieces, of, wanted = given, "outputs", {name for name in wanted if "weight" in name}
        else:
            pieces, of = samples.regrouped(given, self.samples, self.kernels), self.of
        if not pieces:
            there = sum(map(samples.size, given))
            raise InputError(
                f"proxy ntk: expected at least {self.samples} samples, got {there}; give more or larger batches"
            )
        if not wanted:
            raise InputError(f"proxy ntk: no parameter that it measures trains in {program.class_name}; unfreeze some")
        return [
            kernel(network, piece, of=of, wanted=wanted, seed=seed + place).matrix for place, piece in enumerate(pieces)
        ]


def log_condition(matrix: Tensor, rounding: float) -> float:
    """Returns log10 of the condition number of a symmetric matrix; rounding limits it for singular matrices.

    Args:
        matrix: `[n, n]`.
        rounding: relative error of the gradients; eigenvalues below `n * rounding` of the largest are noise.

    Returns:
        The logarithm; NaN if an element is not finite, infinity for a matrix of zeros.
    """
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    values = torch.linalg.eigvalsh(matrix)
    largest, smallest = float(values[-1]), float(values[0])
    if largest <= 0:
        return math.inf
    return math.log10(largest / max(smallest, len(matrix) * rounding * largest))


def published_condition(matrix: Tensor) -> float:
    """Returns the condition number as AutoProg-Zero's code computes it: NaN becomes zero, signs are not checked."""
    values = torch.linalg.eigvalsh(torch.nan_to_num(matrix))
    ratio = torch.nan_to_num(values[-1] / values[0])
    return float(ratio)
