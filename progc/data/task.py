"""Defines what a network is trained on: samples, the loss, and the inputs of a batch. Used by searches and trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from progc.data import order as data_order
from progc.errors import InputError
from progc.ir.program import Program

Call = tuple[tuple[Any, ...], dict[str, Any]]


def first_is_input(batch: Any) -> Call:
    """Returns the first item of a tuple, or all items of a mapping but `label`, `labels`, `target`, `targets`."""
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key not in ("label", "labels", "target", "targets")}
    if isinstance(batch, (tuple, list)):
        return (batch[0],), {}
    return (batch,), {}


def cross_entropy(outputs: Any, batch: Any) -> torch.Tensor:
    """Returns the mean cross entropy of logits `[batch, classes]` and `batch[1]`, class indices or probabilities."""
    logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    return F.cross_entropy(logits, batch[1])


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and loss.

    Attributes:
        samples: a map-style dataset: `len()` and `[index]`.
        loss: computes the mean loss over the samples, a scalar, from the outputs of the network and the batch.
        inputs: makes the positional and keyword arguments of the network from a batch.
        collate: makes a batch from a list of samples.
        validation: samples for validation; None if there are none.
        resize: resizes a batch to a height and width; None resizes floating-point tensors
            `[batch, channels, height, width]` bilinearly.
        staged: makes the task of a stage from its regularisation and image size (height, width); None uses the same
            samples in all stages.
    """

    samples: Any
    loss: Callable[[Any, Any], torch.Tensor] = cross_entropy
    inputs: Callable[[Any], Call] = first_is_input
    collate: Callable[[list[Any]], Any] = default_collate
    validation: Any = None
    resize: Callable[[Any, tuple[int, int]], Any] | None = None
    staged: Callable[[Any, tuple[int, int]], Task] | None = None

    def batches(
        self, size: int, *, seed: int, epoch: int = 0, count: int | None = None, validation: bool = False
    ) -> Iterator[Any]:
        """Yields shuffled batches of one epoch; order and random transforms depend on seed and epoch only.

        Args:
            size: samples per batch; an incomplete batch at the end is dropped.
            seed, epoch: what order and random transforms depend on.
            count: number of batches; None yields all.
            validation: whether to use the validation samples, in their own order.

        Raises:
            InputError: there are fewer batches than `count`, or no validation samples.
        """
        samples = self.validation if validation else self.samples
        if samples is None:
            raise InputError("there are no validation samples; return (train, validation) from datasets()")
        there = len(samples) // size
        if count is not None and there < count or not there:
            raise InputError(
                f"{count or 1} batches of {size} are needed, but {len(samples)} samples give {there}; "
                "use a smaller batch or more data"
            )
        order = torch.arange(len(samples)) if validation else data_order.order(seed, epoch, len(samples))
        for place in range(there if count is None else count):
            chosen = order[place * size : (place + 1) * size].tolist()
            yield self.collate(data_order.fetch(samples, chosen, seed, epoch))

    def fitted(self, batch: Any, program: Program) -> Any:
        """Returns the batch at the image size of a program; the batch itself if it has that size."""
        from progc.errors import TargetError
        from progc.transforms.resolution.images import find_images

        try:
            images = find_images(program)
        except TargetError:
            return batch
        return self.at_size(batch, images[0].size)

    def at_size(self, batch: Any, size: tuple[int, int]) -> Any:
        """Returns the batch with images of `size` (height, width)."""
        if self.resize is not None:
            return self.resize(batch, size)

        def fit(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or leaf.dim() != 4 or not leaf.is_floating_point():
                return leaf
            if tuple(leaf.shape[2:]) == tuple(size):
                return leaf
            return F.interpolate(leaf, size=list(size), mode="bilinear", align_corners=False, antialias=True)

        return pytree.tree_map(fit, batch)

    def run(self, module: torch.nn.Module, batch: Any, **more: Any) -> Any:
        """Returns the outputs of the module for a batch that already has its image size.

        Args:
            module: the module to call.
            batch: the batch.
            more: further keyword inputs, such as the stage identifier.
        """
        args, kwargs = self.inputs(batch)
        return module(*args, **kwargs, **more)
