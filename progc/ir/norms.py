"""Normalisations that keep running statistics: made to stand still in the train graph, and let go again.

A normalisation that stands still computes in train mode what it computes in eval mode, from its running statistics,
and writes nothing. Its operations stay in the graph with other arguments, and remember the ones they had in
`node.meta["moving"]` (position to value), so that every pass that copies nodes copies both states, and letting go gives
the graph that was there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from progc.ir.operations import RUNNING_NORMS, argument, mutates, op_name

MOVING = "moving"
"""Key of `node.meta`: position to value of the arguments that a still operation has while it moves."""


def written(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of a node as they are while its statistics move: what blocks are compared by."""
    return _replaced(node.args, node.meta.get(MOVING, {}))


def norms(graph: fx.Graph) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """Normalisations that update running statistics while they move, each with all nodes that have to be changed.

    These are the normalisation and, where it counts its batches, the counter: an integer buffer beside the statistics
    that is added to, in place, before they are used.
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
    """Whether `hold` was done to this node."""
    return MOVING in node.meta


def hold(node: fx.Node) -> None:
    """Makes a node of `norms` stand still, in place."""
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
    """Position of the argument by which a normalisation with running statistics uses those of the batch instead."""
    name = op_name(node)
    if node.op != "call_function" or name not in RUNNING_NORMS:
        return None
    names = [item.name for item in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(RUNNING_NORMS[name])
    kept = argument(node, "running_mean")
    return position if isinstance(kept, fx.Node) and len(node.args) > position else None


def _owner(buffer: Any) -> str:
    """Name of the module that a buffer is in."""
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
