"""Checks, by running two samples, that samples do not interact in a network, and finds the order of their entries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from progc.ir.operations import describe
from progc.search.proxies.running import Network, output_places, undisturbed
from progc.search.proxies.sample_dims import Coupled, SamplePlace, Samples, Uses
from progc.search.proxies.taps import TappedRun

_STRETCH = 65_537


class _Probe(TappedRun):
    """Records the results of all uses, and the values of some nodes."""

    def __init__(self, *args: Any, noted: Collection[fx.Node]) -> None:
        super().__init__(*args)
        self.noted = noted
        self.results: list[tuple[fx.Node, Tensor]] = []
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node, and records its value if the node is in `noted`."""
        result = super().run_node(n)
        if n in self.noted:
            self.values[n] = result.detach().clone()
        return result

    def tap(self, node: fx.Node, shared: tuple[fx.Node, ...], values: dict[fx.Node, Any], result: Tensor) -> None:
        """Records the result."""
        self.results.append((node, result))


def compare(
    network: Network, inputs: list[Any], others: list[Any], samples: Samples, uses: Uses, wanted: Collection[str]
) -> frozenset[str]:
    """Runs two samples forward, then with another second sample, and backward from each of the two.

    Args:
        inputs: flat inputs of two samples.
        others: the same with another second sample.
        samples: where the samples are, by shapes.
        uses: the uses of the parameters.
        wanted: names of the parameters.

    Returns:
        Names of the nodes whose samples are the inner index (see `SamplePlace.inner`).

    Raises:
        Coupled: a value of one sample, or its gradient, depends on the other one.
    """
    read = {item for node in uses.shared for item in (node, *node.all_input_nodes)}
    (output,) = [node for node in network.program.graphs["train"].nodes if node.op == "output"]
    several = {node for node in (*read, *output.all_input_nodes) if _each(samples, node) > 1}
    tensors = _noisy(network)
    orders = dict(samples.dims)
    if several:
        values = []
        for pair in (inputs, others):
            run = _Probe(network.program, tensors, uses, wanted, noted=several)
            with undisturbed(network.program, 0), torch.no_grad():
                run.run(*pair, enable_io_processing=False)
            values.append(run.values)
        for node in several:
            place = orders[node]
            orders[node] = SamplePlace(place.dim, place.each, _apart(place, values[0][node], values[1][node], node))
    with undisturbed(network.program, 0):
        run = _Probe(network.program, tensors, uses, wanted, noted=())
        flat = run.run(*inputs, enable_io_processing=False)
        ends = [(leaf, place) for leaf, place in zip(flat, output_places(network, orders), strict=True)]
        _backwards([end for end in ends if isinstance(end[0], Tensor) and end[0].requires_grad], run.results, orders)
    return frozenset(node.name for node in several if orders[node].inner)


def _each(samples: Samples, node: fx.Node) -> int:
    return samples.dims[node].each if node in samples.dims else 0


def _apart(place: SamplePlace, one: Tensor, other: Tensor, node: fx.Node) -> bool:
    """Whether the order is `inner`: in the right order the entries of the first sample do not change."""
    changed = one != other
    for inner in (False, True):
        if not SamplePlace(place.dim, place.each, inner).split(changed, 2)[0].any():
            return inner
    raise Coupled(f"a sample changes with the other one in {describe(node)}")


def _backwards(
    ends: list[tuple[Tensor, SamplePlace | None]],
    results: list[tuple[fx.Node, Tensor]],
    orders: dict[fx.Node, SamplePlace],
) -> None:
    if any(place is None for _, place in ends):
        raise Coupled("an output has no dim of samples")
    for sample in (0, 1) if ends else ():
        cotangents = []
        for leaf, place in ends:
            assert place is not None
            cotangent = torch.zeros_like(leaf)
            place.split(cotangent, 2)[sample].copy_(0.5 + torch.rand_like(place.split(leaf.detach(), 2)[sample]))
            cotangents.append(cotangent)
        found = torch.autograd.grad(
            [leaf for leaf, _ in ends],
            [result for _, result in results],
            cotangents,
            retain_graph=sample == 0,
            allow_unused=True,
        )
        for (node, _), gradient in zip(results, found, strict=True):
            if gradient is not None and orders[node].split(gradient, 2)[1 - sample].ne(0).any():
                raise Coupled(f"samples interact after {describe(node)}")


def _noisy(network: Network) -> dict[str, Tensor]:
    """The program's tensors with noise added to the parameters (a short piece of noise, repeated)."""
    stretch = torch.rand(_STRETCH, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    found = {}
    for name, tensor in network.tensors.items():
        value = tensor.detach()
        if network.program.specs[name].kind == "parameter" and value.is_floating_point():
            noise = stretch.repeat(1 + value.numel() // _STRETCH)[: value.numel()].view(value.shape)
            spread = 0.1 * float(value.norm()) / max(1, value.numel()) ** 0.5
            value = noise.to(value).mul_(max(spread, 0.02)).add_(value)
        found[name] = value
    return found
