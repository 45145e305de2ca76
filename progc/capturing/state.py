"""A model looks after capture exactly as it did before, also when capture fails.

Tracing runs the user's `forward`, which may fill caches, count calls or draw random numbers. The context manager
`untouched` puts all of that back: training flags, attributes, caches one level deep, and random states.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_CONTAINERS = (dict, collections.OrderedDict, list, set)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores `model` and the random states of torch, numpy and Python on exit."""
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    contents: dict[int, tuple[Any, Any]] = {}
    for values in attributes.values():
        for value in values.values():
            if type(value) in _CONTAINERS:
                contents[id(value)] = value, type(value)(value)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python_state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, values in attributes.items():
            module.__dict__.clear()
            module.__dict__.update(values)
        for container, before in contents.values():
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def dataclass_outputs(model: nn.Module) -> Iterator[None]:
    """Registers dataclasses that the model returns with pytree, as it returns them.

    The registration is global and stays: the captured program returns the same class.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        register_dataclasses(output)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def register_dataclasses(tree: Any) -> None:
    """Makes every dataclass in `tree` a pytree node; one that is already a node is left alone."""
    while True:
        instances = (leaf for leaf in pytree.tree_leaves(tree) if not isinstance(leaf, type))
        kinds = {type(leaf) for leaf in instances if dataclasses.is_dataclass(leaf)}
        if not kinds:
            return
        for kind in kinds:  # a registered class is no leaf any more, so its own fields are looked at next
            torch.export.register_dataclass(kind)
