"""`naswot`: how different the activation patterns of different samples are (Mellor et al., ICML 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.search.proxies import samples
from progc.search.proxies.base import TwoModes
from progc.search.proxies.running import Network, ProxyRun, undisturbed
from progc.search.proxies.sample_dims import Coupled, SamplePlace, find_samples

_GATES = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "hardtanh", "hardswish", "gelu", "silu",
    "mish", "softplus", "hardsigmoid", "log_sigmoid",
}  # fmt: skip


class _Codes(ProxyRun):
    """Counts, over all activation functions, the units in which two samples have the same sign."""

    def __init__(self, network: Network, count: int) -> None:
        super().__init__(network.program, {name: tensor.detach() for name, tensor in network.tensors.items()})
        try:
            self.places = dict(find_samples(network.program).dims)
        except Coupled:
            self.places = {}
        self.count, self.units = count, 0
        self.agreeing: Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Reads the signs of the input of an activation function, and runs the node."""
        if n.op == "call_function" and op_name(n) in _GATES and isinstance(n.args[0], fx.Node):
            place, value = self.places.get(n.args[0], SamplePlace(0, 1)), self.env[n.args[0]]
            if value.dim() > place.dim and value.shape[place.dim] == place.each * self.count:
                code = (place.split(value, self.count).flatten(1) > 0).to(torch.float32)
                both = code @ code.T + (1 - code) @ (1 - code).T  # counts: exact in float32 up to 2^24 units
                self.agreeing = both.double() if self.agreeing is None else self.agreeing + both
                self.units += code.shape[1]
        return super().run_node(n)


@dataclasses.dataclass(frozen=True)
class NASWOT(TwoModes):
    """log |det K|, where K_ij counts the units that are positive, or not positive, for both samples i and j.

    Units are the inputs of ReLU and similar activation functions (gelu, silu, ...), which are found by operation.
    Reference: as published. Default: K is divided by the number of units, and the score by the number of samples, so
    that it depends on neither. It does not depend on which parameters train.
    """

    name: ClassVar[str] = "naswot"
    ranks_unfreezing: ClassVar[bool] = False

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """See `progc.search.proxies.base.Proxy.score`; -inf if two samples have the same pattern.

        Raises:
            InputError: fewer than two samples, or no activation function in the network.
        """
        network = Network(program, task, stage)
        if not batches or samples.size(batches[0]) < 2:
            raise InputError("proxy naswot: expected a batch of at least 2 samples; give a larger batch")
        batch = network.fitted(batches[:1])[0]
        count = samples.size(batch)
        run = _Codes(network, count)
        with undisturbed(network.program, seed), torch.no_grad():
            flat = run.run(*network.inputs(batch), enable_io_processing=False)
        if run.agreeing is None:
            raise InputError(
                f"proxy naswot: {program.class_name} has no activation function such as ReLU; use another proxy"
            )
        if any(isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()) for leaf in flat):
            return math.nan
        if self.mode == "reference":
            return float(torch.linalg.slogdet(run.agreeing)[1])
        return float(torch.linalg.slogdet(run.agreeing / run.units)[1]) / count
