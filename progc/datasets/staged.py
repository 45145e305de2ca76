"""Samples as a stage of a schedule wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from progc.datasets.mixing import Mixed, classes_of
from progc.errors import TargetError
from progc.program import Program
from progc.schedule.stage import Stage
from progc.task import Call, Task


def for_stage(task: Task, stage: Stage, program: Program) -> Task:
    """The task with images at the size of the stage's program, and with the stage's regularisation of samples.

    Args:
        program: of the stage; no values are read.

    Raises:
        InputError: the stage asks for mixup, and the network is no classifier.
    """
    from progc.resolution.images import find_images

    try:
        size = find_images(program)[0].size
    except TargetError:  # no images
        return task
    if task.staged is not None:
        task = task.staged(stage.regularisation, size)
    if stage.regularisation.mixup:
        task = dataclasses.replace(task, samples=Mixed(task.samples, stage.regularisation.mixup, classes_of(program)))
    return dataclasses.replace(task, inputs=_Resized(task, size))


class _Resized:
    """A batch to the inputs of a network of one image size."""

    def __init__(self, task: Task, size: tuple[int, int]) -> None:
        self._inputs: Callable[[Any], Call] = task.inputs
        self._task, self._size = task, size

    def __call__(self, batch: Any) -> Call:
        return self._inputs(self._task.at_size(batch, self._size))
