"""Fits samples to a stage of a schedule: image size, transforms and mixup.

Mixup (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018) blends every sample with another one of the
training data, and their labels in the same proportion, by lambda from Beta(alpha, alpha). Libraries that mix a batch
with itself make a sample depend on its batch, and so on ranks and micro-batches. Here partner and lambda depend on
(seed, epoch, index) only, like everything else that is drawn for a sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from progc.data import order as data_order
from progc.data.failures import Named
from progc.data.parts import names
from progc.data.regularisation import Regularisation
from progc.data.task import Task
from progc.errors import InputError, TargetError
from progc.ir.program import Program

DENSE = ("area", "nearest", "noise")
"""What a part may be that is neither an image nor fixed."""


def for_stage(task: Task, regularisation: Regularisation, program: Program) -> Task:
    """Returns the task with the image size of a stage and its regularisation of samples.

    Its batches have that size for the network and for the loss.

    Args:
        task: task of the run.
        regularisation: regularisation of the stage.
        program: program of the stage; no values are read.

    Raises:
        InputError: the stage asks for mixup, but the network is not a classifier.
    """
    size, run = image_size(program), task.of or task
    if task.staged is not None and size is not None:
        task = task.staged(regularisation, size)
    alpha = regularisation.mixup
    if alpha:
        task = dataclasses.replace(task, samples=Mixed(task.samples, alpha, classes_of(program)))
    return task if size is None else dataclasses.replace(task, size=size, of=run)


def candidate_tasks(
    task: Task, regularisation: Regularisation, programs: Sequence[Program]
) -> tuple[Task, tuple[Task, ...]]:
    """Returns the task whose samples a search loads, and the task of each of its candidates.

    Samples are loaded at the largest image size and not yet fitted: which candidate a step trains is not known then.

    Args:
        task: task of the run.
        regularisation: regularisation of the search.
        programs: the candidates; no values are read.
    """
    sizes = [image_size(program) for program in programs]
    largest = max(range(len(programs)), key=lambda number: math.prod(sizes[number] or (0,)))
    loading = for_stage(task, regularisation, programs[largest])
    fitted = tuple(dataclasses.replace(loading, size=size) for size in sizes)
    return dataclasses.replace(loading, size=None), fitted


def not_set(task: Task, wanted: Sequence[Regularisation], program: Program) -> tuple[str, ...]:
    """Returns notes about augmentation that the schedule asks for and these samples cannot have, before training.

    Args:
        task: task of the run.
        wanted: regularisation of each stage.
        program: the full program.

    Raises:
        InputError: a stage asks for mixup, but the network is not a classifier or samples cannot be mixed.
    """
    if any(each.mixup for each in wanted):
        data_order.fetch(Named(Mixed(task.samples, 1.0, classes_of(program))), [0], 0, 0)
    if task.staged is not None and image_size(program) is not None:
        return ()
    names = {"rand_augment": "RandAugment", "random_erasing": "random erasing"}
    asked = [words for name, words in names.items() if any(getattr(each, name) for each in wanted)]
    if not asked:
        return ()
    own = "there are no images" if task.staged is not None else "these samples have no transforms for each stage"
    return (f"{' and '.join(asked)} of the plan {'are' if len(asked) > 1 else 'is'} not applied: {own}",)


def check_sizes(task: Task, sizes: Iterable[tuple[int, int] | None]) -> tuple[str, ...]:
    """Checks, before training, that batches can have the image sizes of all stages.

    Args:
        task: task of the run.
        sizes: height and width of each stage; None where it has no image.

    Returns:
        A note that says what dense targets and noise were taken for; empty if there are none, or if the task says it.

    Raises:
        InputError: it is not known what a part of a batch is, or it cannot have one of the sizes.
    """
    wanted = [size for size in dict.fromkeys(sizes) if size is not None]
    if not wanted or task.staged is not None:
        return ()
    batch = task.batching.make([0], seed=0, epoch=0)
    for size in wanted:
        task.at_size(batch, size)
    if "kinds" not in vars(task) or task.parts is not None:  # nothing was looked at
        return ()
    told = [f"{name} as {word}" for name, word in zip(names(batch), task.kinds, strict=True) if word in DENSE]
    more = "(found from the samples; `parts` in the file says it otherwise)"
    return (f"at other image sizes a batch has {', '.join(told)} {more}",) if told else ()


def image_size(program: Program) -> tuple[int, int] | None:
    """Returns height and width of the images of a program; None if it takes no images."""
    from progc.transforms.resolution.images import find_images

    try:
        return find_images(program)[0].size
    except TargetError:
        return None


class Mixed:
    """Classification samples, each blended with another one.

    Random numbers come from the global generator of numpy, which is seeded for every sample (progc/data/order.py).
    """

    def __init__(self, samples: Any, alpha: float, classes: int) -> None:
        """
        Args:
            samples: `[index]` returns a floating-point tensor and the index of its class.
            alpha: parameter of the beta distribution, above 0; with 0.2 most samples change little, with 1 lambda is
                uniform. Values below 1e-6 are raised to it: numpy would divide 0 by 0.
            classes: number of classes.
        """
        self.samples, self.alpha, self.classes = samples, max(alpha, 1e-6), classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the blend, and the probabilities of both classes, `[classes]` f32.

        Raises:
            InputError: samples are not such pairs, or a class is out of range.
        """
        # Drawn before the samples' own transforms, so that a partner does not depend on what they draw.
        other = int(np.random.randint(len(self.samples)))
        share = float(np.random.beta(self.alpha, self.alpha))
        image, label = self._pair(index)
        more, second = self._pair(other)
        if more.shape != image.shape:
            raise InputError(
                f"mixup: expected samples of one shape, got {list(image.shape)} for sample {index} and "
                f"{list(more.shape)} for sample {other}; plan without mixup, or resize the samples"
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
                    raise InputError(
                        f"mixup: sample {index} is of class {int(label)}, but the network has {self.classes} classes"
                    )
                return image, int(label)
        raise InputError(
            f"mixup: sample {index} is not a pair of a floating-point tensor and a class index; plan with --regularise "
            "without mixup"
        )


def classes_of(program: Program) -> int:
    """Returns the number of classes of a classifier.

    Raises:
        InputError: the first output is not of shape `[batch, classes]`.
    """
    output = next(node for node in reversed(program.graphs["eval"].nodes) if node.op == "output")
    first = next(iter(output.all_input_nodes), None)
    shape = None if first is None else getattr(first.meta.get("tensor"), "shape", None)
    if shape is None or len(shape) != 2:
        raise InputError(
            f"mixup: expected an output of shape [batch, classes], got {'no tensor' if shape is None else list(shape)} "
            f"from {program.class_name}; plan without mixup"
        )
    return int(shape[1])
