"""Inner products of the gradients of all samples of a batch: the empirical neural tangent kernel (Jacot et al. 2018).

There are two ways. Both are exact for the gradient of each sample's number (`running.by_sample`) in a forward pass of
the *whole batch*, with the masks drawn for it:

- Where samples do not interact: one forward and one backward pass for all samples (`progc.search.proxies.taps`).
- Where they do (batch statistics): one forward pass and a backward pass per sample, because the number of one sample
  depends on the activations of all.

Analysis of the graph decides (`progc.search.proxies.sample_dims`), and a run on two samples proves it: the gradient of
one sample's number must be exactly zero in the entries of the other.

`torch.func.vmap(grad(...))` over the whole graph is not used: it holds the gradients of all parameters for all samples
at once, and draws other masks where samples are not in the first dim.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from progc.ir.notation import call_text
from progc.search.proxies import samples as batches
from progc.search.proxies.independence import compare
from progc.search.proxies.running import Network, ProxyRun, by_sample, output_places, undisturbed
from progc.search.proxies.sample_dims import Coupled, Samples, Uses, find_samples, find_uses
from progc.search.proxies.taps import Collector, Products

_BYTES = 2**30
"""Bytes of per-sample gradients that are held at a time, with a backward pass per sample."""

_proved: OrderedDict[Any, str | frozenset[str]] = OrderedDict()
_LIMIT = 256


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Inner products of per-sample gradients.

    Attributes:
        matrix: `[samples, samples]` in float64.
        coupled: why a backward pass per sample was needed; empty if it was not.
    """

    matrix: Tensor
    coupled: str


def kernel(
    network: Network, batch: Any, *, of: str, wanted: Collection[str], seed: int, one_by_one: bool = False
) -> Kernel:
    """Computes the inner products of the gradients of the samples' numbers with respect to some parameters.

    Args:
        network: the network.
        batch: a batch at the program's image size.
        of: `loss` or `outputs` (see `running.by_sample`).
        wanted: canonical names of the parameters.
        seed: seed of the masks; both ways draw the same ones.
        one_by_one: whether to use a backward pass per sample in any case.

    Raises:
        InputError: the batch does not fit the program, or the loss is not a scalar.
    """
    reason = "requested"
    if not one_by_one:
        try:
            samples = find_samples(network.program)
            uses = find_uses(network.program, samples, wanted)
            samples = _prove(network, batch, samples, wanted)
            with undisturbed(network.program, seed):
                return Kernel(_at_once(network, batch, of, samples, uses, wanted), "")
        except Coupled as found:
            reason = str(found)
    with undisturbed(network.program, seed):
        return Kernel(_one_by_one(network, batch, of, wanted), reason)


def _at_once(network: Network, batch: Any, of: str, samples: Samples, uses: Uses, wanted: Collection[str]) -> Tensor:
    count = batches.size(batch)
    products = Products(count, next(iter(network.tensors.values())).device)
    run = Collector(network.program, network.tensors, uses, wanted, samples, products)
    flat = run.run(*network.inputs(batch), enable_io_processing=False)
    total = by_sample(network, of, flat, output_places(network, samples.dims), batch, count).sum()
    del flat
    if total.requires_grad:
        torch.autograd.backward(total)
    run.finish()
    return products.matrix


def _one_by_one(network: Network, batch: Any, of: str, wanted: Collection[str]) -> Tensor:
    """A backward pass per sample through one graph; parameters in parts, so that their gradients fit into memory."""
    count = batches.size(batch)
    leaves = {name: network.tensors[name].detach().requires_grad_() for name in wanted}
    tensors = {**{name: tensor.detach() for name, tensor in network.tensors.items()}, **leaves}
    flat = ProxyRun(network.program, tensors).run(*network.inputs(batch), enable_io_processing=False)
    try:
        dims = find_samples(network.program).dims
    except Coupled:
        dims = None
    numbers = by_sample(network, of, flat, output_places(network, dims), batch, count)
    products = Products(count, numbers.device)
    part: list[Tensor] = []
    for place, leaf in enumerate(leaves.values()):
        part.append(leaf)
        held = sum(item.numel() * item.element_size() for item in part) * count
        if held < _BYTES and place < len(leaves) - 1:
            continue
        found = [
            torch.autograd.grad(number, part, retain_graph=True, allow_unused=True)
            for number in (numbers if numbers.requires_grad else ())
        ]
        for own in zip(*found, strict=True):
            if own[0] is not None:
                products.add_rows(torch.stack(own))
        part = []
    return products.matrix


def _prove(network: Network, batch: Any, samples: Samples, wanted: Collection[str]) -> Samples:
    """Returns the samples with the order of their entries, proved by running two samples.

    Forward: with another second sample, the entries of the first one do not change. Backward, from each of the two: at
    every use the gradient is exactly zero in the entries of the other one. Weights get noise for this, because zeros at
    the end of a network would hide everything before it. All parameters are checked if possible. The result is kept for
    the structure of the graph, so that trainable sets of one network share the proof.

    Raises:
        Coupled: samples interact.
    """
    if batches.size(batch) < 2:
        raise Coupled("the batch has a single sample, and the proof needs two")
    names = {name for name, tensor in network.program.parameters() if tensor.is_floating_point()}
    try:
        uses = find_uses(network.program, samples, names)
    except Coupled:
        names = set(wanted)
        uses = find_uses(network.program, samples, names)
    first = batches.part(batch, 0, 1)
    with undisturbed(network.program, 0):
        inputs = network.inputs(batches.part(batch, 0, 2))
    with undisturbed(network.program, 0):
        others = network.inputs(batches.joined([first, first]))
    shapes = tuple(tuple(leaf.shape[1:]) for leaf in inputs if isinstance(leaf, Tensor))
    calls = "\n".join(call_text(node) for node in network.program.graphs["train"].nodes)
    key = (hashlib.sha256(calls.encode()).hexdigest(), shapes, frozenset(names))
    if key not in _proved:
        try:
            _proved[key] = compare(network, inputs, others, samples, uses, names)
        except Coupled as reason:
            _proved[key] = str(reason)
        while len(_proved) > _LIMIT:
            _proved.popitem(last=False)
    found = _proved[key]
    if isinstance(found, str):
        raise Coupled(found)
    dims = {node: dataclasses.replace(place, inner=node.name in found) for node, place in samples.dims.items()}
    return dataclasses.replace(samples, dims=dims)
