"""Which values of a graph are written to in place, through views too."""

from __future__ import annotations

import operator

import torch
from torch import fx


def written_to(graph: fx.Graph) -> set[str]:
    """Names of the nodes whose memory some op of the graph writes to, through views too."""
    found: set[str] = set()
    views: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        source = first_alias(node, write=False)
        if source is not None:
            views.setdefault(source, []).append(node)
    todo = [base for node in graph.nodes if (base := first_alias(node, write=True)) is not None]
    while todo:
        node = todo.pop()
        if node.name not in found:
            found.add(node.name)
            todo.extend(views.get(node, ()))
            base = first_alias(node, write=False)
            todo.extend([base] if base is not None else [])
    return found


def first_alias(node: fx.Node, write: bool) -> fx.Node | None:
    """The operand that a node writes to, or that its result is a view of."""
    if node.target is operator.getitem and not write:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and (argument.alias_info.is_write or not write):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(given, fx.Node):
                return given
    return None
