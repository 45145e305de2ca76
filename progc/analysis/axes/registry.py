"""The registry of op rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from progc.analysis.axes.context import Args

if TYPE_CHECKING:
    from progc.analysis.axes.context import Context

Rule = Callable[["Context", fx.Node, "Args"], Any]
_RULES: dict[str, Rule] = {}


def rule(*ops: Any, later: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """Registers the rule of one or more ops; used as a decorator (docs/custom-ops.md).

    Args:
        ops: the ops. Give an ATen op by name, without the overload and the underscore of an in-place variant (`glu`).
            Give an op of another namespace as the object that `torch.library.custom_op` returned, as
            `torch.ops.mylib.swiglu`, or by name (`mylib.swiglu`).
        later: names of ops that a library defines when it is imported. They need not exist yet.

    Raises:
        ValueError: the ATen op already has a rule, or there is no op of that name.
        TypeError: no op is given, or the object is not an op.
    """
    names = [*(_name_of(op) for op in ops), *later]
    if not names:
        raise TypeError("rule() expects at least one op: @progc.rule(swiglu) or @progc.rule('mylib.swiglu')")

    def register(function: Rule) -> Rule:
        for name in names:
            known = _RULES.get(name)
            # A file that is imported again, or a copy of it, registers its ops and their rules again. The latest rule
            # holds, as for torch.library.custom_op. The rules of progc itself are never replaced.
            if known is not None and "." not in name and not _same_place(known, function):
                raise ValueError(f"op {name} already has a rule")
            _RULES[name] = function
        return function

    return register


def _name_of(op: Any) -> str:
    """Returns the key of an op: `glu`, `mylib.swiglu`."""
    if isinstance(op, torch._ops.OpOverload):
        op = op._schema.name
    # what torch.library.custom_op returns, or torch.ops.mylib.swiglu
    given = op if isinstance(op, str) else getattr(op, "_qualname", getattr(op, "_qualified_op_name", None))
    if not isinstance(given, str):
        raise TypeError(f"rule(): expected an op or the name of one (`mylib.swiglu`), got {op!r}")
    name = given.replace("::", ".").removeprefix("aten.")
    if "." in name and not torch._C._jit_get_schemas_for_operator(name.replace(".", "::", 1)):
        raise ValueError(f"rule(): no op is called {name}; define the op before its rule, and give no overload")
    return name


def _same_place(known: Rule, other: Rule) -> bool:
    """Returns True if both are the same function of a user's file that was run twice."""
    a, b = known.__code__, other.__code__
    own = known.__module__.startswith("progc.")
    return not own and (a.co_filename, known.__qualname__) == (b.co_filename, other.__qualname__)


def rule_of(name: str) -> Rule | None:
    """Returns the rule of an op, or None."""
    return _RULES.get(name)


def rule_for(node: fx.Node) -> tuple[str, Rule | None]:
    """Returns the name of the op that a node calls, with its namespace, and the rule of the op or None."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target)), None
    namespace, name = node.target._schema.name.split("::")
    if namespace != "aten":
        return f"{namespace}.{name}", _RULES.get(f"{namespace}.{name}")
    if name not in _RULES and name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return f"aten.{name}", _RULES.get(name)
