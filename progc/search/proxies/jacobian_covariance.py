"""`jacobian-covariance`: how different the linear maps at different samples are (Mellor et al. 2020, first version)."""

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
from progc.search.proxies.base import TwoModes
from progc.search.proxies.running import Network, ProxyRun, undisturbed

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class JacobianCovariance(TwoModes):
    """Score of the correlations between samples of the gradients of the outputs' sum with respect to the inputs.

    With the eigenvalues v of the correlation matrix and e = 1e-5, the score is -sum(log(v + e) + 1 / (v + e)) over the
    first batch, as published (arXiv 2006.04647v1). Default: divided by the number of samples, so that it does not
    depend on the batch size. It does not depend on which parameters train.
    """

    name: ClassVar[str] = "jacobian-covariance"
    ranks_unfreezing: ClassVar[bool] = False

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """See `progc.search.proxies.base.Proxy.score`.

        Raises:
            InputError: fewer than two samples, or no floating input that the outputs depend on.
        """
        network = Network(program, task, stage)
        if not batches or samples.size(batches[0]) < 2:
            raise InputError("proxy jacobian-covariance: expected a batch of at least 2 samples; give a larger batch")
        rows = jacobians(network, network.fitted(batches[:1])[0], seed)
        correlations = torch.corrcoef(rows.double())
        if not bool(torch.isfinite(correlations).all()):
            return math.nan
        values = torch.linalg.eigvalsh(correlations)
        score = -float((torch.log(values + _EPSILON) + 1 / (values + _EPSILON)).sum())
        return score if self.mode == "reference" else score / len(rows)


def jacobians(network: Network, batch: Any, seed: int) -> Tensor:
    """Returns the gradients of the sum of all outputs with respect to the floating-point inputs, `[samples, entries]`.

    Raises:
        InputError: the outputs do not depend on a floating-point input.
    """
    tensors = {name: tensor.detach() for name, tensor in network.tensors.items()}
    count = samples.size(batch)
    with undisturbed(network.program, seed):
        inputs = [
            leaf.detach().requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
            for leaf in network.inputs(batch)
        ]
        free = [leaf for leaf in inputs if isinstance(leaf, Tensor) and leaf.requires_grad and len(leaf) == count]
        flat = ProxyRun(network.program, tensors).run(*inputs, enable_io_processing=False)
        ends = [leaf.sum() for leaf in flat if isinstance(leaf, Tensor) and leaf.requires_grad]
        found = torch.autograd.grad(ends, free, allow_unused=True) if ends and free else ()
    rows = [gradient.flatten(1) for gradient in found if gradient is not None]
    if not rows:
        raise InputError(
            f"proxy jacobian-covariance: outputs of {network.program.class_name} do not depend on a floating-point "
            "input; use another proxy"
        )
    return torch.cat(rows, dim=1)
