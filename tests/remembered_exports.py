"""torch.export runs once for modules that are alike: three quarters of the time of the fast tests was export.

Tests build small networks from the same classes again and again. Within one process, what torch.export returned for a
module is used again for another one whose content is the same: classes, attributes, nesting, ties, and shapes, dtypes
and flags of parameters and buffers (export never sees their values). Everything after export (lowering, names, tensors,
the program) is made anew for each module. What cannot be pickled is exported as ever. `make test-all` and tests of
capture itself remember nothing.
"""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.capturing import capture

KEPT = 64
"""Exports that are remembered in a process."""
LARGEST = 4_000_000
"""Parameters of the largest module whose export is remembered, which keeps its weights in memory."""


class Content(pickle.Pickler):
    """Writes what export can see of a module and its inputs."""

    def __init__(self, file: io.BytesIO, module: nn.Module, inputs: Any) -> None:
        super().__init__(file)
        leaves = pytree.tree_leaves(inputs)
        shapes = [*module.parameters(), *module.buffers(), *leaves]
        self.unseen = {id(value) for value in shapes if isinstance(value, torch.Tensor)}
        self.order: dict[int, int] = {}
        self.held: list[Any] = []
        """Keeps alive what is known by its identity."""

    def reducer_override(self, value: Any) -> Any:
        """Tensors by their order, form and perhaps values; classes by identity, with the functions they hold now."""
        if isinstance(value, torch.Tensor):
            place = self.order.setdefault(id(value), len(self.order))
            form = (type(value).__name__, value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
            values = None if id(value) in self.unseen else value.detach().cpu().numpy().tobytes()
            return str, (f"{place} {form} {values!r}",)
        if isinstance(value, type) and value.__module__ != "builtins":
            own = [vars(base) for base in value.__mro__ if base not in (nn.Module, object)]
            functions = [id(held) for names in own for held in names.values() if callable(held)]
            self.held += [value, *(held for names in own for held in names.values())]
            return str, (f"{value.__qualname__} {id(value)} {functions}",)
        return NotImplemented


class RememberedExports:
    """Takes the place of two functions of capture.

    Attributes:
        used: how often an export was used again.
    """

    def __init__(self) -> None:
        self.used = 0
        self.known: collections.OrderedDict[tuple[bytes, bool, bool], tuple[Any, Any]] = collections.OrderedDict()
        self._content: tuple[bytes, Any] | None = None
        self._capture, self._export = capture._capture, capture._export

    def use(self, on: bool) -> None:
        """Sets whether exports are remembered and used from now on."""
        own = (self.capture, self.export) if on else (self._capture, self._export)
        capture._capture, capture._export = own  # type: ignore[assignment]

    def capture(self, model: nn.Module, inputs: Any, modes: Any) -> Any:
        """`_capture`, with the content of the model in mind: export sees it with hooks."""
        self._content = content(model, inputs)
        try:
            return self._capture(model, inputs, modes)
        finally:
            self._content = None

    def export(self, model: nn.Module, inputs: Any, dynamic: bool) -> Any:
        """`_export`, once for each content."""
        if self._content is None:
            return self._export(model, inputs, dynamic)
        written, held = self._content
        key = written, model.training, dynamic
        if key in self.known:
            self.used += 1
            self.known.move_to_end(key)
            return self.known[key][0]
        found = self._export(model, inputs, dynamic)
        self.known[key] = found, held
        if len(self.known) > KEPT:
            self.known.popitem(last=False)
        return found


def content(model: nn.Module, inputs: Any) -> tuple[bytes, Any] | None:
    """The content of a module and its inputs, and what has to live as long; None for what cannot be told."""
    if any(tensor.is_meta for tensor in model.parameters()) or sum(map(torch.numel, model.parameters())) > LARGEST:
        return None
    file = io.BytesIO()
    try:
        pickler = Content(file, model, inputs)
        pickler.dump((model, inputs))
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError, NotImplementedError):
        return None  # local functions, generators, locks
    return file.getvalue(), pickler.held


EXPORTS = RememberedExports()
"""Those of this process; tests/conftest.py says during which tests they are used."""
