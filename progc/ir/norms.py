"""Freezes and unfreezes the running statistics of normalisations in the train graph.

A frozen normalisation computes in train mode what it computes in eval mode, from its running statistics, and updates
nothing. Its operations stay in the graph with changed arguments. They keep the original ones in `node.meta["moving"]`
(position to value), so every pass that copies nodes copies both states, and `release` restores the original graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from progc.ir.operations import RUNNING_NORMS, argument, mutates, op_name

MOVING = "moving"
"""Key of `node.meta`: the original arguments of an operation whose statistics are frozen, position to value."""


def written(node: fx.Node) -> tuple[Any, ...]:
    """Returns the positional arguments of a node with its statistics unfrozen; blocks are compared by these."""
    return _replaced(node.args, node.meta.get(MOVING, {}))


def norms(graph: fx.Graph) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """Yields the normalisations that update running statistics, each with all nodes that freezing has to change.

    These are the normalisation and, where it counts batches (`num_batches_tracked`), the in-place addition to the
    counter.
    """
    counters: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if _counts(node):
            counters[_owner(node.args[0])] = node
        switch = _switch(node)
        if switch is not None and written(node)[switch] is True:
            counter = counters.pop(_owner(argument(node, "running_mean")), None)
            yield node, (node,) if counter is None else (node, counter)


def is_still(node: fx.Node) -> bool:
    """Whether the statistics of this node are frozen (`hold`)."""
    return MOVING in node.meta


def hold(node: fx.Node) -> None:
    """Freezes the statistics of a node that `norms` returned, in place."""
    if not is_still(node):
        switch = _switch(node)
        new = {1: 0} if switch is None else {switch: False}
        node.meta[MOVING] = {position: node.args[position] for position in new}
        node.args = _replaced(node.args, new)


def release(node: fx.Node) -> None:
    """Undoes `hold`, in place."""
    if is_still(node):
        node.args = _replaced(node.args, node.meta.pop(MOVING))


def _switch(node: fx.Node) -> int | None:
    """Position of the argument that makes a normalisation with running statistics use those of the batch."""
    name = op_name(node)
    if node.op != "call_function" or name not in RUNNING_NORMS:
        return None
    names = [item.name for item in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(RUNNING_NORMS[name])
    kept = argument(node, "running_mean")
    return position if isinstance(kept, fx.Node) and len(node.args) > position else None


def _owner(buffer: Any) -> str:
    """Name of the module that owns a buffer."""
    return str(buffer.target).rpartition(".")[0]


def _counts(node: fx.Node) -> bool:
    """An integer buffer plus a literal, in place."""
    return (
        mutates(node)
        and op_name(node) == "add"
        and not node.users
        and len(node.args) > 1
        and isinstance(node.args[0], fx.Node)
        and node.args[0].op == "get_attr"
        and isinstance(written(node)[1], int)
    )


def _replaced(args: tuple[Any, ...], new: dict[int, Any]) -> tuple[Any, ...]:
    return tuple(new.get(position, argument) for position, argument in enumerate(args))
