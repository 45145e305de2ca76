"""What is differentiated: one number per sample, made of the outputs of a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from progc.errors import InputError
from progc.search.proxies import samples as batches
from progc.search.proxies.running import Network
from progc.search.proxies.sample_dims import Place

OBJECTIVES = ("loss", "outputs")


def output_places(network: Network, dims: Any) -> list[Place | None]:
    """The dim of samples of every flat output of the train graph; None where it has none.

    Args:
        dims: of `sample_dims.Samples`; None: dim 0, as far as an output has one.
    """
    (output,) = [node for node in network.program.graphs["train"].nodes if node.op == "output"]
    leaves = output.args[0]
    flat: Sequence[Any] = leaves if isinstance(leaves, (list, tuple)) else [leaves]
    if dims is None:
        return [Place(0, 1) if isinstance(leaf, fx.Node) else None for leaf in flat]
    return [dims.get(leaf) if isinstance(leaf, fx.Node) else None for leaf in flat]


def by_sample(
    network: Network, of: str, flat: Sequence[Any], places: Sequence[Place | None], batch: Any, count: int
) -> Tensor:
    """`[count]`: the loss of each sample alone, or the sum of all its output elements.

    Args:
        of: `loss` or `outputs`.
        flat: the outputs of the train graph.
        places: see `output_places`.

    Raises:
        InputError: the loss is no scalar, or no output is a tensor of samples.
    """
    if of == "outputs":
        sums = [
            place.split(leaf, count).flatten(1).sum(1)
            for leaf, place in zip(flat, places, strict=True)
            if place is not None and _holds(leaf, place, count) and leaf.is_floating_point()
        ]
        if not sums:
            raise InputError(f"no output of {network.program.class_name} is a floating tensor with a dim of samples")
        return torch.stack(sums).sum(0)
    losses = []
    for sample in range(count):
        own = [
            place.split(leaf, count)[sample] if place is not None and _holds(leaf, place, count) else leaf
            for leaf, place in zip(flat, places, strict=True)
        ]
        losses.append(loss_of(network, own, batches.part(batch, sample, sample + 1)))
    return torch.stack(losses)


def loss_of(network: Network, flat: Sequence[Any], batch: Any) -> Tensor:
    """The task's loss of flat outputs of the train graph.

    Raises:
        InputError: it is not one number.
    """
    loss = network.task.loss(network.structured(list(flat)), batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"the task's loss gives {given}; return the mean loss over the samples, a scalar")
    return loss.reshape(())


def _holds(leaf: Any, place: Place, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > place.dim and leaf.shape[place.dim] == place.each * count
