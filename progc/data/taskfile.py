"""Loads data and loss from a Python file: `datasets()`, `loss(outputs, batch)`, `inputs(batch)`, `resize(batch, size)`.

`parts` in the file says what each item of a batch is (progc/data/parts.py).

Every function of the file is called so that an exception in it becomes one line with its place in the file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from progc.data.batching import Rows
from progc.data.parts import check as check_parts
from progc.data.task import Task, cross_entropy, first_is_input
from progc.data.unread import check_names
from progc.errors import InputError, did_you_mean
from progc.files.python import UserFunction, load_file, required_arguments, run

_KINDS = ("train", "validation")
_EXPECTED = (
    "expected a map-style dataset (with len() and [index]), tensors of one length, a pair (train, validation) of "
    'these, or {"train": ..., "validation": ...}'
)


def load_task(path: Path) -> Task:
    """Returns the task that a Python file defines.

    `datasets()` returns the training samples, a pair (train, validation), or a mapping with these keys. Samples are a
    map-style dataset, or a tuple of tensors of one length, whose i-th sample holds the i-th item of each. Without
    `loss(outputs, batch)` samples must be pairs (input, class index), and the loss is cross entropy. `inputs(batch)`
    (returns a tuple of positional arguments, a dict of keyword arguments, or both as a pair), `resize(batch, size)` and
    `parts` (a tuple or dict of words) are optional, see `progc.data.task.Task`.

    Raises:
        InputError: the file does not exist, a function is missing, fails, or returns something invalid, or a name is
            nearly that of a function that is missing; names file and function.
    """
    module = load_file(path)
    for name in ("datasets", "loss", "inputs", "resize"):
        found = getattr(module, name, None)
        if found is not None and not callable(found):
            raise InputError(f"{path}: expected a function `{name}`, got {_kind(found)}")
    datasets = getattr(module, "datasets", None)
    if datasets is None:
        raise InputError(
            f"{path} has no datasets(); write def datasets(): return train, validation, and def loss(outputs, batch): "
            "the mean loss, a scalar"
        )
    _takes(path, "datasets", datasets, 0)
    train, validation = _parts(path, run(path, datasets, "makes its datasets"))
    samples = _samples(path, "datasets()", train)
    held_out = None if validation is None else _samples(path, "validation of datasets()", validation)
    loss, inputs, resize = (getattr(module, name, None) for name in ("loss", "inputs", "resize"))
    for name, function, count in (("loss", loss, 2), ("inputs", inputs, 1), ("resize", resize, 2)):
        if function is not None:
            _takes(path, name, function, count)
    if loss is None:
        _check_default_loss(path, samples)
    parts = getattr(module, "parts", None)
    if parts is not None:
        check_parts(parts, f"{path}: parts")
    notes = check_names(path, module)
    return Task(
        samples,
        cross_entropy if loss is None else _Loss(path, loss),
        first_is_input if inputs is None else _Inputs(path, inputs),
        validation=held_out,
        resize=None if resize is None else UserFunction(path, resize, "resizes a batch"),
        parts=parts,
        notes=notes,
    )


def has_task(path: Path) -> bool:
    """Returns whether a file defines `datasets`; the file is imported.

    Raises:
        InputError: the file cannot be imported.
    """
    return getattr(load_file(path), "datasets", None) is not None


# --- datasets -------------------------------------------------------------------------------------------------------


def _parts(path: Path, value: Any) -> tuple[Any, Any]:
    """Train and validation of what `datasets()` returned; validation may be None."""
    if value is None:
        raise InputError(f"{path}: datasets() returned None; {_EXPECTED}")
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in _KINDS]
        if unknown or "train" not in value:
            wrong = f"has the key `{unknown[0]}`{did_you_mean(str(unknown[0]), _KINDS)}" if unknown else "lacks `train`"
            raise InputError(
                f"{path}: the dict of datasets() {wrong}; expected the keys train and, optionally, validation"
            )
        return value["train"], value.get("validation")
    if isinstance(value, tuple) and not _of_one_length(value):
        if len(value) == 2:
            return value[0], value[1]
        raise InputError(f"{path}: datasets() returned {len(value)} values; {_EXPECTED}")
    return value, None


def _of_one_length(value: Any) -> bool:
    """Whether these are the tensors of one dataset, and not several datasets."""
    tensors = isinstance(value, tuple) and all(isinstance(item, torch.Tensor) and item.dim() for item in value)
    return tensors and len({len(item) for item in value}) == 1


def _samples(path: Path, what: str, value: Any) -> Any:
    if isinstance(value, DataLoader):
        raise InputError(f"{path}: {what} is a DataLoader; return its dataset (progc makes batches from its own seed)")
    if isinstance(value, tuple) and value and all(isinstance(item, torch.Tensor) for item in value):
        if not _of_one_length(value):
            lengths = ", ".join(str(len(item)) if item.dim() else "a scalar" for item in value)
            raise InputError(f"{path}: the tensors of {what} have lengths {lengths}; expected one length for all")
        value = TensorDataset(*value)
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not sized or isinstance(value, (str, bytes, Mapping, tuple, IterableDataset)):
        iterates = ", which can only be iterated" if hasattr(value, "__iter__") and not sized else ""
        raise InputError(f"{path}: {what} is {_kind(value)}{iterates}; {_EXPECTED}")
    # Rows are read without running code of the file, so nothing has to be guarded.
    samples = value if Rows.of(value) is not None else _Samples(path, value)
    if not len(samples):
        raise InputError(f"{path}: {what} is empty; expected at least one batch of samples")
    return samples


class _Samples:
    """A map-style dataset of the file."""

    def __init__(self, path: Path, samples: Any) -> None:
        self._samples = samples
        self._length = UserFunction(path, len, "returns the length of its dataset")
        self._get = UserFunction(path, operator.getitem, "returns sample {1}")
        if callable(getattr(samples, "__getitems__", None)):
            self.__getitems__ = UserFunction(path, samples.__getitems__, "returns samples")

    def __len__(self) -> int:
        return int(self._length(self._samples))

    def __getitem__(self, index: int) -> Any:
        return self._get(self._samples, index)


class _Loss:
    """The loss of the file; what it returns is checked at each call."""

    def __init__(self, path: Path, function: Callable[..., Any]) -> None:
        self._path, self._call = path, UserFunction(path, function, "computes its loss")

    def __call__(self, outputs: Any, batch: Any) -> torch.Tensor:
        found = self._call(outputs, batch)
        if not isinstance(found, torch.Tensor) or found.dim() or not found.is_floating_point():
            what = f"a tensor {list(found.shape)} of {found.dtype}" if isinstance(found, torch.Tensor) else _kind(found)
            raise InputError(
                f"{self._path}: loss(outputs, batch) returned {what}; expected the mean, a floating-point scalar"
            )
        return found


class _Inputs:
    """The `inputs` of the file: makes positional and keyword arguments from a batch."""

    def __init__(self, path: Path, function: Callable[..., Any]) -> None:
        self._path, self._call = path, UserFunction(path, function, "takes the inputs of a batch")

    def __call__(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = self._call(batch)
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], tuple) and isinstance(found[1], dict):
            return found
        if isinstance(found, dict):
            return (), found
        if isinstance(found, tuple):
            return found, {}
        raise InputError(
            f"{self._path}: inputs(batch) returned {_kind(found)}; expected a tuple of positional arguments, "
            "`return (x,)`, a dict of keyword arguments, or both"
        )


# --- loss -----------------------------------------------------------------------------------------------------------


def _check_default_loss(path: Path, samples: Any) -> None:
    """Raises InputError unless samples are pairs of an input and a class index."""
    batch = run(path, lambda: default_collate([samples[0]]), "makes a batch of one sample")
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    labels = batch[1] if pair else None
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or labels.dtype != torch.int64:
        raise InputError(
            f"{path} has no loss(outputs, batch), and its samples are not pairs of an input and a class index as cross "
            "entropy needs them; write def loss(outputs, batch): the mean loss, a scalar"
        )


def _takes(path: Path, name: str, function: Callable[..., Any], count: int) -> None:
    needed = required_arguments(function)
    if len(needed) > count:
        wanted = {"datasets": "", "loss": "outputs, batch", "inputs": "batch", "resize": "batch, size"}[name]
        raise InputError(f"{path}: `{name}` needs arguments ({', '.join(needed)}); write def {name}({wanted}):")


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
