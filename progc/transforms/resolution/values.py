"""Values of a walk, and the arguments that a rule gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from progc.ir.layouts import Layout
from progc.lift.extents import Dim, new_size, old_size

Path = tuple["int | str", ...]
"""Place of an argument: position or keyword, then indices into lists."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor: its dims at both sizes, and its layout at the new one.

    `table` names the tensor of the program whose values it holds, moved at most; `counts` says that it numbers the
    positions of the image; `summed` is over how many positions it is a sum, before and after.
    """

    dims: tuple[Dim, ...]
    layout: Layout
    table: str | None = None
    counts: bool = False
    summed: tuple[int, int] | None = None

    @property
    def old(self) -> tuple[int, ...]:
        """Shape before."""
        return tuple(map(old_size, self.dims))

    @property
    def new(self) -> tuple[int, ...]:
        """Shape after."""
        return tuple(map(new_size, self.dims))


@dataclasses.dataclass(frozen=True)
class Size:
    """A number that depends on the batch."""

    old: int
    new: int


class Args:
    """Arguments of an operation by schema name.

    Args:
        resolve: makes values, sizes and plain data of an argument of the graph.
        node: calls the operation.
    """

    def __init__(self, resolve: Callable[[Any], Any], node: fx.Node) -> None:
        self.paths: dict[str, Path] = {}
        self.values: dict[str, Any] = {}
        assert isinstance(node.target, torch._ops.OpOverload)
        for position, argument in enumerate(node.target._schema.arguments):
            name = argument.name
            if position < len(node.args):
                raw: Any = node.args[position]
                self.paths[name] = (position,)
            elif name in node.kwargs:
                raw = node.kwargs[name]
                self.paths[name] = (name,)
            else:
                raw = argument.default_value if argument.has_default_value() else None
            self.values[name] = resolve(raw)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument, or `default` if the operation has none of that name."""
        found = self.values.get(name)
        return default if found is None else found

    def first(self) -> Value:
        """The first tensor."""
        return next(self.tensors())

    def tensors(self) -> Iterator[Value]:
        """All tensors, lists flattened."""
        for value in self.values.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Value):
                    yield item


def number(value: Any) -> int:
    """A size before the change."""
    return value.old if isinstance(value, Size) else int(value)


def op_name(node: fx.Node) -> str:
    """ATen name without overload and in-place underscore."""
    assert isinstance(node.target, torch._ops.OpOverload)
    name = node.target._schema.name.removeprefix("aten::")
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
