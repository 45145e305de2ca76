"""An averaged copy of a program's tensors (EMA), as a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from progc.ir.deferred import all_deferred, all_values


@dataclasses.dataclass(frozen=True, eq=False)
class Average:
    """One averaged copy of a program's tensors.

    Attributes:
        tensors: every name of the program to its average; no parameters. Floating tensors of 16 bits are kept in
            float32, in which small changes still count.
        decay: share of the old average in the new one; None if nobody knows, as for a file.
    """

    tensors: Mapping[str, torch.Tensor]
    decay: float | None = None

    @property
    def deferred(self) -> Average:
        """The same with deferred tensors (progc/ir/deferred.py)."""
        return dataclasses.replace(self, tensors=all_deferred(self.tensors))

    @property
    def complete(self) -> Average:
        """The same with the values of all its tensors in memory."""
        return dataclasses.replace(self, tensors=all_values(self.tensors))
