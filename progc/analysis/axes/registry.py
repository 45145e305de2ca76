"""The registry of op rules, and the arguments that a rule gets."""

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
        ops: an ATen op by name, without overload and in-place underscore (`glu`); an op of another namespace by the
            object that `torch.library.custom_op` returned, by `torch.ops.mylib.swiglu`, or by name
            (`mylib.swiglu`).
        later: names of ops that a library defines when it is imported, which need not have happened.

    Raises:
        ValueError: an ATen op that has a rule already, or no op of that name.
        TypeError: something that is no op.
    """
    names = [*(_name_of(op) for op in ops), *later]
    if not names:
        raise TypeError("rule() needs the op that it is for: @progc.rule(swiglu), or @progc.rule('mylib.swiglu')")

    def register(function: Rule) -> Rule:
        for name in names:
            known = _RULES.get(name)
            # A file that is imported again, or a copy of it, brings its ops and their rules anew: the latest holds, as
            # it does for torch.library.custom_op. Our own rules are never replaced.
            if known is not None and "." not in name and not _same_place(known, function):
                raise ValueError(f"two rules for op {name}")
            _RULES[name] = function
        return function

    return register


def _name_of(op: Any) -> str:
    """The key of an op: `glu`, `mylib.swiglu`."""
    if isinstance(op, torch._ops.OpOverload):
        op = op._schema.name
    # what torch.library.custom_op returns, or torch.ops.mylib.swiglu
    given = op if isinstance(op, str) else getattr(op, "_qualname", getattr(op, "_qualified_op_name", None))
    if not isinstance(given, str):
        raise TypeError(f"a rule is for an op, given itself or by name (`mylib.swiglu`), not for {op!r}")
    name = given.replace("::", ".").removeprefix("aten.")
    if "." in name and not torch._C._jit_get_schemas_for_operator(name.replace(".", "::", 1)):
        raise ValueError(f"no op is called {name}; define it before its rule, and leave out the overload")
    return name


def _same_place(known: Rule, other: Rule) -> bool:
    """True for one function of a user's file that was run twice."""
    a, b = known.__code__, other.__code__
    own = known.__module__.startswith("progc.")
    return not own and (a.co_filename, known.__qualname__) == (b.co_filename, other.__qualname__)


def rule_of(name: str) -> Rule | None:
    """The rule of an op, or None."""
    return _RULES.get(name)


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
