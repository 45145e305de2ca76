"""Defines what a network is trained on: samples, the loss, and the inputs of a batch. Used by searches and trainer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from progc.data import order as data_order
from progc.data import parts as data_parts
from progc.data.batching import Batching
from progc.data.looking import SAMPLES, look
from progc.data.parts import Parts
from progc.errors import InputError, one_line
from progc.ir.notation import tensor_text
from progc.ir.program import Program
from progc.ir.random_state import kept_random_states

Call = tuple[tuple[Any, ...], dict[str, Any]]


def first_is_input(batch: Any) -> Call:
    """Returns the first item of a tuple, or all items of a mapping but `label`, `labels`, `target`, `targets`."""
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key not in ("label", "labels", "target", "targets")}
    if isinstance(batch, (tuple, list)):
        return (batch[0],), {}
    return (batch,), {}


def cross_entropy(outputs: Any, batch: Any) -> torch.Tensor:
    """Returns the mean cross entropy of logits `[batch, classes]` and `batch[1]`, class indices or probabilities.

    Raises:
        InputError: the labels do not fit the logits; on a CPU also if a label is not below the number of classes.
    """
    logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    try:
        return F.cross_entropy(logits, batch[1])
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(_misfit(logits, batch, error)) from error


def _misfit(logits: Any, batch: Any, error: Exception) -> str:
    """Why cross entropy cannot be computed, in one line."""
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
        what = "the first output of the network and the second item of a batch"
        return f"cross entropy: expected tensors as {what}, got {type(logits).__name__} and {type(labels).__name__}"
    if isinstance(error, IndexError) and logits.dim() > 1 and not labels.is_floating_point():
        classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
        return (
            f"label {low if low < 0 else high} in a batch, but the network has {classes} classes, 0 to {classes - 1}; "
            "build it with more classes (such as num_classes), or fix the labels"
        )
    shapes = f"{tensor_text(logits)} and {tensor_text(labels)}"
    return (
        f"cross entropy of outputs and labels {shapes}: {one_line(error, 160)}; write loss(outputs, batch) in the "
        "data file, or fix the labels"
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """Data and loss.

    Attributes:
        samples: a map-style dataset: `len()` and `[index]`.
        loss: computes the mean loss over the samples, a scalar, from the outputs of the network and the batch.
        inputs: makes the positional and keyword arguments of the network from a batch.
        collate: makes a batch from a list of samples.
        validation: samples for validation; None if there are none.
        resize: resizes a batch to a height and width; None resizes every part as what it is.
        parts: what each item of a batch is (`progc.data.parts`), such as `("image", "noise")`, or by key where a batch
            is a mapping; None, or a key that is left out, is found from types, shapes and values.
        size: height and width that `fit` gives to the image of a batch, in the task of a stage; None leaves batches as
            they are.
        of: the task of the run, in that of a stage; what the parts are is found once, from its samples.
        notes: sentences for the user, such as about names in a file that nothing reads.
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
    parts: Parts | None = None
    size: tuple[int, int] | None = None
    of: Task | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.parts is not None:
            data_parts.check(self.parts, "parts")

    @functools.cached_property
    def batching(self) -> Batching:
        """Makes batches of the samples, not yet fitted to an image size."""
        return Batching(self.samples, self.collate)

    @functools.cached_property
    def validating(self) -> Batching:
        """Makes batches of the validation samples, not yet fitted to an image size.

        Raises:
            InputError: there are none.
        """
        if self.validation is None or not len(self.validation):
            raise InputError("there are no validation samples; return (train, validation) from datasets()")
        return Batching(self.validation, self.collate)

    def batches(
        self, size: int, *, seed: int, epoch: int = 0, count: int | None = None, validation: bool = False
    ) -> Iterator[Any]:
        """Yields shuffled batches of one epoch, at the image size of the task's stage.

        Order and random transforms depend on seed and epoch only.

        Args:
            size: samples per batch; an incomplete batch at the end is dropped.
            seed, epoch: what order and random transforms depend on.
            count: number of batches; None yields all.
            validation: whether to use the validation samples, in their own order.

        Raises:
            InputError: there are fewer batches than `count`, or no validation samples.
        """
        made = self.validating if validation else self.batching
        samples = made.samples
        there = len(samples) // size
        if count is not None and there < count or not there:
            raise InputError(
                f"{count or 1} batches of {size} are needed, but {len(samples)} samples give {there}; "
                "use a smaller batch or more data"
            )
        order = torch.arange(len(samples)) if validation else data_order.order(seed, epoch, len(samples))
        for place in range(there if count is None else count):
            chosen = order[place * size : (place + 1) * size].tolist()
            yield self.fit(made.make(chosen, seed, epoch))

    def fitted(self, batch: Any, program: Program) -> Any:
        """Returns the batch at the image size of a program; the batch itself if it has that size."""
        from progc.errors import TargetError
        from progc.transforms.resolution.images import find_images

        try:
            images = find_images(program)
        except TargetError:
            return batch
        return self.at_size(batch, images[0].size)

    def fit(self, batch: Any) -> Any:
        """Returns the batch at the image size of the task's stage: what the network and the loss get."""
        return batch if self.size is None else self.at_size(batch, self.size)

    def at_size(self, batch: Any, size: tuple[int, int]) -> Any:
        """Returns the batch with images of `size` (height, width); every part follows as what it is.

        Raises:
            InputError: it is not known what a part is, or a part cannot have that size.
        """
        if self.resize is not None:
            return self.resize(batch, size)
        dense = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim() == 4]
        if self.parts is None and all(tuple(leaf.shape[-2:]) == tuple(size) for leaf in dense):
            return batch  # before anything is looked at
        return data_parts.resized(batch, self._words(batch), size)

    def _words(self, batch: Any) -> Sequence[str]:
        """A word for each leaf of a batch."""
        if self.of is not None:
            return self.of._words(batch)
        if len(self.samples) and len(self.kinds) == len(pytree.tree_leaves(batch)):
            return self.kinds
        return self._found(batch)  # a batch that does not come from the samples

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """What each tensor of a batch is, found from some of the samples."""
        chosen = list(range(0, len(self.samples), max(len(self.samples) // SAMPLES, 1)))[:SAMPLES]
        return self._found(self.batching.make(chosen, seed=0, epoch=0))

    def _found(self, batch: Any) -> tuple[str, ...]:
        leaves = pytree.tree_leaves(batch)
        words = [None] * len(leaves) if self.parts is None else data_parts.spread(self.parts, batch)
        with kept_random_states():  # `inputs` may draw
            given = {id(leaf) for leaf in pytree.tree_leaves(self.inputs(batch))}
        return tuple(look(batch, words, [id(leaf) in given for leaf in leaves]))

    def run(self, module: torch.nn.Module, batch: Any, **more: Any) -> Any:
        """Returns the outputs of the module for a batch that already has its image size.

        Args:
            module: the module to call.
            batch: the batch.
            more: further keyword inputs, such as the stage identifier.
        """
        args, kwargs = self.inputs(batch)
        return module(*args, **kwargs, **more)
