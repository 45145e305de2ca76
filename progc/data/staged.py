"""Samples as a stage of a schedule wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from progc.data import order as data_order
from progc.data.mixing import Mixed, classes_of
from progc.data.regularisation import Regularisation
from progc.data.task import Call, Task
from progc.errors import TargetError
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
    return task if size is None else dataclasses.replace(task, inputs=_Resized(task, size))


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


class _Resized:
    """A batch to the inputs of a network of one image size."""

    def __init__(self, task: Task, size: tuple[int, int]) -> None:
        self._inputs: Callable[[Any], Call] = task.inputs
        self._task, self._size = task, size

    def __call__(self, batch: Any) -> Call:
        return self._inputs(self._task.at_size(batch, self._size))
