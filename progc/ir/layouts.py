"""Infers shapes by running operations on fake tensors, once per combination of inputs.

A network repeats its blocks, its two graphs are almost equal, and growth evaluates the same graphs several times:
before a pass, after it, and at twice the batch size. So almost every evaluation is a repetition. Results depend only
on the operation, the layouts and the constants, and are cached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from progc.ir.deferred import device_of

_LIMIT = 50_000
"""Results that are cached; a large network has a few hundred different ones."""

_PLAIN = (int, float, bool, str, complex, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A tensor without values: shape, strides (in elements), dtype and device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: torch.Tensor) -> Layout:
        """Returns the layout of a tensor; for a deferred tensor, with the device that its values will be on."""
        return Layout(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, device_of(tensor))


class Evaluator(contextlib.AbstractContextManager["Evaluator"]):
    """Runs operations on layouts. Use one context for a whole graph; all contexts share the cache."""

    _known: dict[Any, Any] = {}

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._entered = False
        # Results depend on these too, not on the arguments alone.
        self._state = (torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns `target(*args, **kwargs)` with layouts in place of tensors; raises what `target` raises."""
        if target is operator.getitem and isinstance(args[0], (tuple, list)):
            return args[0][args[1]]
        key = self._key(target, args, kwargs)
        if key is not None and key in self._known:
            return self._known[key]
        self._enter()
        result = target(*pytree.tree_map(_fake, args), **pytree.tree_map(_fake, kwargs))
        result = pytree.tree_map(_plain, result)
        if key is not None:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = result
        return result

    def _key(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The key of the cache; None if the result depends on more than layouts and constants."""
        # An operation that changes the shape of its input in place changes more than its result.
        if not isinstance(target, torch._ops.OpOverload) or torch.Tag.inplace_view in target.tags:
            return None
        try:
            return self._state, target, _hashable(args), _hashable(kwargs)
        except TypeError:
            return None

    def _enter(self) -> None:
        if not self._entered:
            self._entered = True
            self._stack.enter_context(_quiet())
            self._stack.enter_context(FakeTensorMode())
            self._stack.enter_context(torch.no_grad())


def _hashable(value: Any) -> Any:
    """Equal for equal arguments only: 1, 1.0 and True differ."""
    if isinstance(value, Layout):
        return value
    if isinstance(value, (list, tuple)):
        return type(value), *map(_hashable, value)
    if isinstance(value, dict):
        return tuple((name, _hashable(item)) for name, item in value.items())
    if type(value) in _PLAIN:
        return type(value), value
    raise TypeError(type(value))


def _fake(value: Any) -> Any:
    """A fake tensor of the same layout. Not `from_tensor`: its memo would keep the real tensor alive."""
    if isinstance(value, Layout):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device=value.device)
    return value


def _plain(value: Any) -> Any:
    return Layout.of(value) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _quiet() -> Any:
    """torch logs every failing fake kernel to stderr; our error reports it once."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
