"""Samples as a stage of a schedule wants them.

Mixup: samples that are blends of two, with both labels in proportion.

Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018: both samples are drawn from the training data, and
lambda from Beta(alpha, alpha), for every sample on its own. Libraries that mix a batch with itself make a sample depend
on who shares its batch, and so on ranks and micro-batches; here it follows from (seed, epoch, index) like all else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from progc.data import order as data_order
from progc.data.regularisation import Regularisation
from progc.data.task import Call, Task
from progc.errors import InputError, TargetError
from progc.ir.program import Program


def for_stage(task: Task, regularisation: Regularisation, program: Program) -> Task:
    """The task with images at the size of the stage's program, and with the stage's regularisation of samples.

    Args:
        regularisation: that of the stage.
        program: of the stage; no values are read.

    Raises:
        InputError: the stage asks for mixup, and the network is no classifier.
    """
    size = _image_size(program)
    if task.staged is not None and size is not None:
        task = task.staged(regularisation, size)
    alpha = regularisation.mixup
    if alpha:
        task = dataclasses.replace(task, samples=Mixed(task.samples, alpha, classes_of(program)))
    return task if size is None else dataclasses.replace(task, inputs=_ResizedBatch(task, size))


def not_set(task: Task, wanted: Sequence[Regularisation], program: Program) -> tuple[str, ...]:
    """What a schedule asks of samples and these cannot have, for people. Known before anything is trained.

    Args:
        wanted: the regularisation of each stage.
        program: the full one.

    Raises:
        InputError: a stage asks for mixup, and the network is no classifier or samples are no pairs for it.
    """
    if any(each.mixup for each in wanted):
        data_order.fetch(Mixed(task.samples, 1.0, classes_of(program)), [0], 0, 0)
    if task.staged is not None and _image_size(program) is not None:
        return ()
    names = {"rand_augment": "RandAugment", "random_erasing": "random erasing"}
    asked = [words for name, words in names.items() if any(getattr(each, name) for each in wanted)]
    if not asked:
        return ()
    own = "there are no images" if task.staged is not None else "these samples have no transforms for each stage"
    return (f"{' and '.join(asked)} of the plan {'are' if len(asked) > 1 else 'is'} not set: {own}",)


def _image_size(program: Program) -> tuple[int, int] | None:
    """Height and width of the program's images; None: it takes none."""
    from progc.transforms.resolution.images import find_images

    try:
        return find_images(program)[0].size
    except TargetError:
        return None


class _ResizedBatch:
    """A batch to the inputs of a network of one image size."""

    def __init__(self, task: Task, size: tuple[int, int]) -> None:
        self._inputs: Callable[[Any], Call] = task.inputs
        self._task, self._size = task, size

    def __call__(self, batch: Any) -> Call:
        return self._inputs(self._task.at_size(batch, self._size))


class Mixed:
    """Samples of a classification, each blended with another one.

    What it draws comes from numpy's global generator, which is seeded for every sample (progc/data/order.py).
    """

    def __init__(self, samples: Any, alpha: float, classes: int) -> None:
        """
        Args:
            samples: `[index]` gives a floating tensor and the index of its class.
            alpha: of the beta distribution, above 0; 0.2 leaves most samples nearly as they are, 1 draws evenly. Below
                1e-6 nearly every share is 0 or 1, and numpy's generator divides 0 by 0: 1e-6 then.
            classes: how many there are.
        """
        self.samples, self.alpha, self.classes = samples, max(alpha, 1e-6), classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The blend, and probabilities `[classes]`, f32.

        Raises:
            InputError: samples are no such pairs, or a class is out of range.
        """
        # Drawn before the samples' own transforms, so that a partner does not depend on what they draw.
        other = int(np.random.randint(len(self.samples)))
        share = float(np.random.beta(self.alpha, self.alpha))
        image, label = self._pair(index)
        more, second = self._pair(other)
        if more.shape != image.shape:
            raise InputError(
                f"mixup: samples {index} and {other} have the shapes {list(image.shape)} and {list(more.shape)}; "
                "expected one shape, or a plan without mixup"
            )
        target = torch.zeros(self.classes)
        target[label] += share
        target[second] += 1.0 - share
        return torch.lerp(more, image, share), target

    def _pair(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[index]
        if isinstance(sample, (tuple, list)) and len(sample) == 2:
            image, label = sample
            whole = isinstance(label, (int, np.integer)) or (
                isinstance(label, torch.Tensor) and not label.dim() and not label.is_floating_point()
            )
            if isinstance(image, torch.Tensor) and image.is_floating_point() and whole:
                if not 0 <= int(label) < self.classes:
                    raise InputError(f"mixup: sample {index} is of class {int(label)}; the network has {self.classes}")
                return image, int(label)
        raise InputError(
            f"mixup: sample {index} is no pair of a floating tensor and the index of its class; plan with --regularise "
            "without mixup"
        )


def classes_of(program: Program) -> int:
    """How many classes a network tells apart.

    Raises:
        InputError: its first output is no `[batch, classes]`.
    """
    output = next(node for node in reversed(program.graphs["eval"].nodes) if node.op == "output")
    first = next(iter(output.all_input_nodes), None)
    shape = None if first is None else getattr(first.meta.get("tensor"), "shape", None)
    if shape is None or len(shape) != 2:
        raise InputError(
            f"mixup: {program.class_name} gives {'no tensor' if shape is None else list(shape)}; expected "
            "[batch, classes], or a plan without mixup"
        )
    return int(shape[1])
