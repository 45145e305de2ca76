"""`gradnorm`: norm of the gradient of the loss (Abdelfattah et al., ICLR 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.search.proxies.base import TwoModes, contracted
from progc.search.proxies.running import Network
from progc.search.proxies.zico import gradients


@dataclasses.dataclass(frozen=True)
class GradNorm(TwoModes):
    """Norm of the gradient of the loss with respect to the trainable parameters, averaged over the batches.

    Default: log10 of the root mean square over all entries, which does not grow with their number. Reference: the sum
    of the norms of the gradients of weights of linear layers and 2-d convolutions, as published.
    """

    name: ClassVar[str] = "gradnorm"
    ranks_unfreezing: ClassVar[bool] = True

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """See `progc.search.proxies.base.Proxy.score`."""
        network = Network(program, task, stage)
        wanted = set(network.trainable)
        if self.mode == "reference":
            wanted &= contracted(network.program, published=True)
        if not wanted or not batches:
            raise InputError(
                f"proxy gradnorm: no parameter that it measures trains in {program.class_name}; unfreeze some"
            )
        entries = sum(network.tensors[name].numel() for name in wanted)
        found = []
        for own in gradients(network, network.fitted(batches), sorted(wanted), seed):
            squares = [float(gradient.abs().double().square().sum()) for gradient in own.values()]
            published = sum(math.sqrt(square) for square in squares)
            found.append(published if self.mode == "reference" else math.sqrt(sum(squares) / entries))
        mean = sum(found) / len(found)
        if self.mode == "reference" or math.isnan(mean):
            return mean
        return math.log10(mean) if mean > 0 else -math.inf
