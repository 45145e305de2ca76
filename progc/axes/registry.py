"""The registry of op rules, and the arguments that a rule gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from progc.axes.records import Value

if TYPE_CHECKING:
    from progc.axes.walk import Context

Rule = Callable[["Context", fx.Node, "Args"], Any]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of one or more ATen ops by name, without overload and in-place underscore."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"two rules for op {name}")
            _RULES[name] = function
        return function

    return register


def rule_of(name: str) -> Rule | None:
    """The rule of an op, or None."""
    return _RULES.get(name)


class Args:
    """Arguments of an op by schema name; graph nodes are replaced by their `Value` (or int for sizes)."""

    def __init__(self, context: Context, node: fx.Node) -> None:
        self.nodes: dict[str, Any] = {}
        self.paths: dict[str, tuple[int | str, ...]] = {}
        self._values: dict[str, Any] = {}
        schema = node.target._schema  # type: ignore[union-attr]
        for position, argument in enumerate(schema.arguments):
            name = argument.name
            if position < len(node.args):
                raw, self.paths[name] = node.args[position], (position,)
            elif name in node.kwargs:
                raw, self.paths[name] = node.kwargs[name], (name,)
            else:
                raw = argument.default_value if argument.has_default_value() else None
            self.nodes[name] = raw
            self._values[name] = context.resolve(raw)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument, or `default` if the op has none of that name."""
        return self._values.get(name, default)

    def tensors(self) -> Iterable[Value]:
        """Every tensor argument, lists flattened."""
        for value in self._values.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Value):
                    yield item

    def node_name(self, name: str) -> str:
        """Name of the graph node given for a tensor argument."""
        node = self.nodes[name]
        assert isinstance(node, fx.Node)
        return node.name


def rule_for(node: fx.Node) -> tuple[str, Rule | None]:
    """Name of the op that a node calls, and its rule if there is one."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target)), None
    namespace, name = node.target._schema.name.split("::")
    if namespace != "aten":
        return f"{namespace}.{name}", _RULES.get(f"{namespace}.{name}")
    if name not in _RULES and name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return f"aten.{name}", _RULES.get(name)
