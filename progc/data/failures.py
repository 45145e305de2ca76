"""Turns errors while samples are read and collated into one line that names the samples and the place.

In a worker process an exception would lose its type and place on the way to the training process, so it is sent as a
`Failure`.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import InputError, OutsideError, ProgcError, one_line, outside
from progc.files.python import user_place
from progc.ir.notation import tensor_text


class Named:
    """A map-style dataset that names the sample and the place of an exception."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        if callable(getattr(samples, "__getitems__", None)):
            self.__getitems__ = self._several

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """Returns a sample.

        Raises:
            InputError: the data set raised an exception.
        """
        try:
            return self.samples[index]
        except ProgcError:
            raise
        except Exception as error:
            raise _unread(error, f"sample {index} is read", "the sample") from error

    def _several(self, indices: list[int]) -> Any:
        try:
            return self.samples.__getitems__(indices)
        except ProgcError:
            raise
        except Exception as error:
            shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
            raise _unread(error, f"samples {shown} are read at once", "the one that fails") from error


@dataclasses.dataclass(frozen=True)
class Failure:
    """An exception that was raised while a batch was made.

    Attributes:
        text: the message, one line.
        outside: whether the same may succeed when it is done again.
        trace: the traceback, for people who look for the fault.
    """

    text: str
    outside: bool
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describes an exception."""
        known = isinstance(error, ProgcError)
        text = one_line(error) if known else f"{type(error).__name__} when samples are read: {one_line(error)}"
        return cls(text, outside(error), "".join(traceback.format_exception(error)))

    def raised(self) -> InputError:
        """Returns the error to raise; its cause shows the traceback of the process that failed."""
        error = (OutsideError if self.outside else InputError)(self.text)
        error.__cause__ = RuntimeError(f"\n{self.trace}")
        return error


def _unread(error: Exception, when: str, what: str) -> InputError:
    place = user_place(error)
    return InputError(
        f"{f'{place}: ' if place else ''}{type(error).__name__} when {when}: "
        f"{one_line(error, empty='no message')}; fix or remove {what}"
    )


def collated(collate: Callable[[list[Any]], Any], found: list[Any], indices: Sequence[int]) -> Any:
    """Returns the batch that `collate` makes of samples.

    Args:
        collate: makes a batch from a list of samples.
        found: the samples.
        indices: their indices in the data set.

    Raises:
        InputError: the samples do not make a batch; names them.
    """
    try:
        return collate(found)
    except ProgcError:
        raise
    except Exception as error:
        place = user_place(error)
        raise InputError(
            f"{f'{place}: ' if place else ''}samples do not make a batch: "
            f"{_unlike(found, indices) or f'{type(error).__name__}: {one_line(error, 200)}'}; give all samples the "
            "same parts and shapes, such as by padding or cropping"
        ) from error


def _unlike(found: Sequence[Any], indices: Sequence[int]) -> str | None:
    """Returns which two samples differ in their parts, types or shapes; None if all are alike."""
    outlines = [_outline(sample) for sample in found]
    for index, outline in zip(indices, outlines, strict=True):
        if outline != outlines[0]:
            return f"sample {indices[0]} is {outlines[0]}, but sample {index} is {outline}"
    return None


def _outline(sample: Any) -> str:
    """The parts of a sample: `(f32[3, 8, 8], int)`."""
    return str(pytree.tree_map(_Kind, sample))


class _Kind:
    """Shows a part of a sample by its type and shape."""

    def __init__(self, value: Any) -> None:
        self.text = type(value).__name__
        if isinstance(value, torch.Tensor):
            self.text = tensor_text(value)
        elif hasattr(value, "shape") and hasattr(value, "dtype"):  # an array of numpy
            self.text = f"{value.dtype}{list(value.shape)}"

    def __repr__(self) -> str:
        return self.text
