"""`jacobian-covariance`: how unlike the linear maps at different samples are (Mellor et al., first version, 2020)."""

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
    """Eigenvalues v of the correlations of the gradients of the outputs' sum by each sample's floating inputs.

    The score is -sum(log(v + e) + 1 / (v + e)) with e = 1e-5 over the first batch, as published (arXiv 2006.04647v1);
    default: over the number of samples, so that it does not follow the batch size. It does not depend on which
    parameters train.
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
            raise InputError("proxy jacobian-covariance needs a batch of at least 2 samples")
        rows = jacobians(network, network.fitted(batches[:1])[0], seed)
        correlations = torch.corrcoef(rows.double())
        if not bool(torch.isfinite(correlations).all()):
            return math.nan
        values = torch.linalg.eigvalsh(correlations)
        score = -float((torch.log(values + _EPSILON) + 1 / (values + _EPSILON)).sum())
        return score if self.mode == "reference" else score / len(rows)


def jacobians(network: Network, batch: Any, seed: int) -> Tensor:
    """Gradients of the sum of all outputs by the floating inputs, `[samples, entries]`.

    Raises:
        InputError: the outputs depend on no floating input.
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
            f"proxy jacobian-covariance: outputs of {network.program.class_name} depend on no floating input; "
            "use another proxy"
        )
    return torch.cat(rows, dim=1)
