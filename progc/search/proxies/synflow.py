"""`synflow`: synaptic flow, a score without data (Tanaka et al., NeurIPS 2020)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.search.proxies import samples
from progc.search.proxies.base import TwoModes
from progc.search.proxies.running import Network, ProxyRun, undisturbed


class _PositiveRun(ProxyRun):
    """Runs the eval graph in float64; results of casts to shorter types are converted back."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node; floating-point results become float64."""
        return pytree.tree_map(_double, super().run_node(n))


def _double(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64
    return value.double() if floating else value


@dataclasses.dataclass(frozen=True)
class SynFlow(TwoModes):
    """Sum over trainable parameters of |w dR/dw|, where R sums the outputs for an input of ones with weights |w|.

    Computed in float64 and eval mode, because products over layers exceed the range of float32. The weights of the
    network do not change. Inputs that are not floating-point tensors (time steps, labels, tokens) are those of the
    first sample. Reference: the sum. Default: the mean over parameters of log10 of their sums, which does not grow with
    their number. For networks with attention or normalisation, which are not products of weights, this is a heuristic.
    """

    name: ClassVar[str] = "synflow"
    ranks_unfreezing: ClassVar[bool] = True

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """See `progc.search.proxies.base.Proxy.score`."""
        network = Network(program, task, stage)
        wanted = [name for name, tensor in network.trainable.items() if tensor.is_floating_point()]
        if not wanted or not batches:
            raise InputError(
                f"proxy synflow: nothing trains in {program.class_name}, or no batch is given; unfreeze some "
                "parameters and give a batch"
            )
        shares = self.shares(network, network.fitted(batches[:1])[0], wanted, seed)
        if any(not math.isfinite(share) for share in shares.values()):
            return math.nan
        if self.mode == "reference":
            return sum(shares.values())
        logs = [math.log10(share) for share in shares.values() if share > 0]
        return sum(logs) / len(logs) if logs else -math.inf

    def shares(self, network: Network, batch: Any, wanted: Sequence[str], seed: int) -> dict[str, float]:
        """Returns the sum of |w dR/dw| of each parameter, by name."""
        specs = network.program.specs
        tensors = {}
        for name, tensor in network.tensors.items():
            value = _double(tensor.detach())
            tensors[name] = value.abs() if specs[name].kind == "parameter" and not value.is_complex() else value
        leaves = [tensors[name].requires_grad_() for name in wanted]
        fixed = not any(network.program.signature.batch_dims)
        with undisturbed(network.program, seed):
            inputs = network.inputs(batch if fixed else samples.part(batch, 0, 1))
            ones = [_ones(leaf) for leaf in inputs]
            flat = _PositiveRun(network.program, tensors, "eval").run(*ones, enable_io_processing=False)
            ends = [leaf.sum() for leaf in flat if isinstance(leaf, Tensor) and leaf.requires_grad]
            if not ends:
                return dict.fromkeys(wanted, 0.0)
            found = torch.autograd.grad(ends, leaves, allow_unused=True)
        return {
            name: 0.0 if gradient is None else float((leaf.detach() * gradient).abs().sum())
            for name, leaf, gradient in zip(wanted, leaves, found, strict=True)
        }


def _ones(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.ones_like(leaf, dtype=torch.float64)
    return leaf
