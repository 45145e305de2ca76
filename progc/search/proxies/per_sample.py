"""Inner products of the gradients of all samples of a batch: the empirical neural tangent kernel (Jacot et al. 2018).

Two ways, both exact for the gradient of each sample's number in the forward of the *whole batch*, with the masks that
were drawn for it:

- where samples do not meet, one forward and one backward for all of them (progc/search/proxies/taps.py);
- where they do (batch statistics), one forward and a backward per sample. Nothing less is exact: the number of one
  sample depends on the activations of all.

Which one applies is found by analysis of the graph (progc/search/proxies/sample_dims.py), and proved on two samples by
running: the gradient of one sample's number is exactly zero in the other's entries.
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
"""Of gradients by sample that are held at a time where there is a backward per sample."""

_proved: OrderedDict[Any, str | frozenset[str]] = OrderedDict()
_LIMIT = 256


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Inner products of gradients.

    Attributes:
        matrix: `[samples, samples]` in float64.
        coupled: why a backward per sample was needed; empty if one for all was enough.
    """

    matrix: Tensor
    coupled: str


def kernel(
    network: Network, batch: Any, *, of: str, wanted: Collection[str], seed: int, one_by_one: bool = False
) -> Kernel:
    """Inner products of the gradients of the samples' numbers by some parameters.

    Args:
        batch: at the program's image size.
        of: `loss` or `outputs` (progc/search/proxies/running.py).
        wanted: canonical names of parameters.
        seed: of the masks that are drawn; the same masks whichever way is taken.
        one_by_one: a backward per sample in any case.

    Raises:
        InputError: the batch does not fit the program, or the loss is no scalar.
    """
    reason = "asked for"
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
    """A backward per sample through one graph; parameters in parts, so that their gradients fit into memory."""
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
    """The samples with the order of their entries, proved by running two samples.

    Forwards: with another second sample, nothing changes in the entries of the first. Backwards, from each of the two:
    at every use the gradient is exactly zero in the entries of the other one. Weights get noise for this, since zeros
    at the end of a network would hide everything before it. All parameters are looked at, where that is possible, and
    what is found is kept for the structure of the graph: trainable sets of one network share the proof.

    Raises:
        Coupled: samples meet.
    """
    if batches.size(batch) < 2:
        raise Coupled("one sample alone proves nothing")
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
