"""Literals in a graph: replacing a size in the arguments of an operation, also one that is times the batch."""

from __future__ import annotations

import itertools
import operator
from typing import Any

from torch import fx


def set_literal(node: fx.Node, path: tuple[int | str, ...], old: int, new: int | float) -> None:
    """Replaces the argument at `path` (position or keyword, then indices into lists), in place.

    Args:
        old: the size there now, at the example's batch.
        new: the size to put there; where a node gives the size, that of the node times new / old.
    """
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        args = list(node.args)
        args[first] = _replaced(node, args[first], rest, old, new)
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, first: _replaced(node, node.kwargs[first], rest, old, new)}


def _replaced(reader: fx.Node, argument: Any, path: tuple[int | str, ...], old: int, new: int | float) -> Any:
    if not path:
        return _scaled(argument, reader, old, int(new)) if isinstance(argument, fx.Node) else new
    items = list(argument)
    items[path[0]] = _replaced(reader, items[path[0]], path[1:], old, new)  # type: ignore[index]
    return items


def _scaled(size: fx.Node, reader: fx.Node, old: int, new: int) -> fx.Node:
    """A size that also depends on the batch, times new / old: `batch * heads` is computed beside the old node."""
    graph = size.graph
    if size.target is operator.mul and sum(isinstance(arg, int) for arg in size.args) == 1:
        args = tuple(arg if isinstance(arg, fx.Node) else arg * new // old for arg in size.args)  # type: ignore[operator]
        exact = all(isinstance(arg, fx.Node) or (arg * new) % old == 0 for arg in size.args)  # type: ignore[operator]
    else:
        exact, args = False, ()
    earlier = itertools.takewhile(lambda node: node is not reader, graph.nodes)
    known = [node for node in earlier if node.target is operator.mul and node.args == args and node is not size]
    if exact and known:
        return known[0]
    with graph.inserting_after(size):
        if exact:
            made = graph.call_function(operator.mul, args)
            made.meta = dict(size.meta)
            return made
        product = graph.call_function(operator.mul, (size, new))
    with graph.inserting_after(product):
        made = graph.call_function(operator.floordiv, (product, old))
    product.meta, made.meta = dict(size.meta), dict(size.meta)
    return made


def drop_unread_sizes(graph: fx.Graph) -> None:
    """Removes products of sizes that nothing reads any more, in place."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target is operator.mul and not node.users:
            graph.erase_node(node)
