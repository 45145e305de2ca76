"""Finds operations that drop values at random in a train graph: whole branches of a sample, or single values.

Drop-path (stochastic depth, Huang et al. 2016) has no operation of its own. It is a random mask with one entry per
sample, `[batch, 1, ...]` (or one for all samples, `[1, 1, ...]`), that multiplies a branch which is then added to
another value, and a division by the keep probability. Model libraries write it in these ways, where k is the keep
probability:

    b * bernoulli_(new_empty(..), k).div_(k)
    (b / k) * floor(rand(..) + k)
    b * (rand(..) < k) / k

A rate of zero is exact and draws no random numbers: operations that draw are then replaced by operations that fill with
ones. They keep the original operation in `node.meta["drawing"]`, so every pass that copies nodes copies both states.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import fx

from progc.ir.graphs import copy_graph
from progc.ir.operations import MOVEMENT, POINTWISE, argument, op_name, target_name
from progc.ir.program import TensorMeta

DRAWING = "drawing"
"""Key of `node.meta`: the operation that a node has while the rate is above zero."""
MEMORY = "drop"
"""Key of `node.meta` of a drop's last node: a `Share`."""

_DROPOUT = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"}
_CREATION = {"empty", "new_empty", "empty_like", "zeros", "new_zeros", "ones", "new_ones"}
_COMPARED = {"lt": True, "le": True, "gt": False, "ge": False}
_REACH = 12

Kind = Literal["path", "dropout"]


@dataclasses.dataclass(frozen=True)
class Share:
    """The proportion of a drop in its ramp, whatever its present rate is.

    Attributes:
        of_largest: its rate divided by the largest rate of its kind, 0 to 1.
        single: whether rates were computed in single precision.
    """

    of_largest: float
    single: bool


@dataclasses.dataclass(frozen=True)
class Number:
    """A literal in the graph that holds the rate, or the keep probability (one minus the rate)."""

    node: fx.Node
    argument: str
    keeps: bool


@dataclasses.dataclass(frozen=True)
class Drop:
    """One place where values are dropped.

    Attributes:
        kind: `path` drops branches of samples; `dropout` drops single values, channels, or attention weights.
        node: the node whose value is the result of the drop.
        rate: drop probability, 0 to 1.
        numbers: the literals that hold it.
        nodes: for `path`, all nodes of the drop, in graph order, `node` last.
        branch: for `path`, the value that is dropped.
    """

    kind: Kind
    node: fx.Node
    rate: float
    numbers: tuple[Number, ...]
    nodes: tuple[fx.Node, ...]
    branch: fx.Node | None = None


def find_drops(graph: fx.Graph) -> list[Drop]:
    """Returns all drops of a graph in graph order, which is execution order."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        drop = _dropout(node) or _path(node, position)
        if drop is not None:
            found.append(drop)
    return sorted(found, key=lambda drop: position[drop.node])


def _dropout(node: fx.Node) -> Drop | None:
    """A dropout call in training, or attention with a dropout rate."""
    name = op_name(node)
    if name in _DROPOUT and argument(node, "train") is not False:
        option = "p"
    elif name.startswith(("scaled_dot_product", "_scaled_dot_product")) and _given(node, "dropout_p"):
        option = "dropout_p"
    else:
        return None
    rate = argument(node, option)
    if not isinstance(rate, (int, float)):
        return None
    return Drop("dropout", node, float(rate), (Number(node, option, False),), (node,))


def _given(node: fx.Node, name: str) -> bool:
    names = [item.name for item in getattr(node.target, "_schema").arguments] if _known(node) else []  # noqa: B009
    return name in node.kwargs or (name in names and names.index(name) < len(node.args))


def _known(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _path(source: fx.Node, position: dict[fx.Node, int]) -> Drop | None:
    """Drop-path whose mask is drawn by `source`."""
    start = _drawn(source)
    if start is None or not _per_sample(source):
        return None
    numbers, nodes = list(start), [source]
    made = source.args[0] if source.args else None
    if isinstance(made, fx.Node) and op_name(made) in _CREATION and len(made.users) == 1:
        nodes.insert(0, made)
    mask = source
    for _ in range(_REACH):
        if len(mask.users) != 1:
            return None
        (user,) = mask.users
        branch = _multiplied(user, mask)
        if branch is not None:
            return _closed(user, branch, numbers, nodes, position)
        if not _shapes_mask(user, mask, numbers):
            return None
        nodes.append(user)
        mask = user
    return None


def _drawn(node: fx.Node) -> list[Number] | None:
    """The numbers of the node that draws a mask; None if it draws none."""
    name = op_name(node)
    if DRAWING in node.meta:
        return _drawn_by(node, target_name(node.meta[DRAWING]))
    return _drawn_by(node, name)


def _drawn_by(node: fx.Node, name: str) -> list[Number] | None:
    # A probability that is the operation's default, 0.5, is not among its arguments.
    if name == "bernoulli" and _known(node) and isinstance(argument(node, _second(node)), (int, float)):
        return [Number(node, _second(node), True)]
    return [] if name in ("rand", "rand_like") else None


def _shapes_mask(user: fx.Node, mask: fx.Node, numbers: list[Number]) -> bool:
    """Whether `user` makes a mask of random numbers or of a mask; adds the numbers that it holds."""
    name = op_name(user)
    if DRAWING in user.meta:
        name = target_name(user.meta[DRAWING])
    if user.args[:1] != (mask,) or not _per_sample(user):
        return False
    other = user.args[1] if len(user.args) > 1 else None
    literal = isinstance(other, (int, float)) and not isinstance(other, bool)
    if name == "add" and literal and not numbers:
        numbers.append(Number(user, _second(user), True))
    elif name in _COMPARED and literal and not numbers:
        numbers.append(Number(user, _second(user), _COMPARED[name]))
    elif name == "div" and literal:
        numbers.append(Number(user, "other", True))
    else:
        return name == "floor" or name in POINTWISE - _DROPOUT or name in MOVEMENT
    return True


def _multiplied(user: fx.Node, mask: fx.Node) -> fx.Node | None:
    """The larger tensor that `user` multiplies by the mask."""
    if op_name(user) != "mul" or len(user.args) < 2:
        return None
    other = user.args[1] if user.args[0] is mask else user.args[0]
    if not isinstance(other, fx.Node) or other is mask or not _shape(other) or len(_shape(other)) != len(_shape(mask)):
        return None
    return other if _shape(other) == _shape(user) and _shape(other) != _shape(mask) else None


def _closed(
    product: fx.Node, branch: fx.Node, numbers: list[Number], nodes: list[fx.Node], position: dict[fx.Node, int]
) -> Drop | None:
    """The drop that ends with `product` or with a division after it.

    None if there is no division, or if the value is not part of a branch.
    """
    nodes, last = [*nodes, product], product
    keep = _value(numbers[0]) if numbers else 1.0
    behind = next(iter(product.users), None)
    if not any(op_name(number.node) == "div" for number in numbers):  # the mask itself is not divided
        if len(branch.users) == 1 and _divided(branch, keep):
            numbers.append(Number(branch, "other", True))
            nodes.append(branch)
            branch = branch.all_input_nodes[0]
        elif behind is not None and len(product.users) == 1 and _divided(behind, keep):
            numbers.append(Number(behind, "other", True))
            nodes.append(behind)
            last = behind
    values = [_value(number) for number in numbers]
    divisions = [number for number in numbers if op_name(number.node) == "div"]
    drawn = len(numbers) - len(divisions)
    if not divisions or drawn != 1 or any(abs(value - values[0]) > 1e-6 for value in values) or not _added(last):
        return None
    ordered = tuple(sorted(nodes, key=lambda node: position[node]))
    return Drop("path", last, 1 - values[0], tuple(numbers), ordered, branch)


def _divided(node: fx.Node, keep: float) -> bool:
    """Whether a node divides a tensor by the probability of keeping."""
    if op_name(node) != "div" or argument(node, "rounding_mode") is not None or len(node.all_input_nodes) != 1:
        return False
    by = node.args[1]
    return isinstance(node.args[0], fx.Node) and isinstance(by, float) and abs(by - keep) < 1e-6


def _value(number: Number) -> float:
    """The keep probability that a literal holds."""
    value = float(argument(number.node, number.argument))
    return value if number.keeps else 1 - value


def _added(node: fx.Node) -> bool:
    """Whether the value, rearranged or scaled, is added to another: it is a branch."""
    for _ in range(_REACH):
        users = [user for user in node.users if not isinstance(user.meta.get("tensor"), int)]
        if any(op_name(user) in ("add", "sub") and len(user.all_input_nodes) > 1 for user in users):
            return True
        if len(users) != 1 or op_name(users[0]) not in POINTWISE | MOVEMENT | {"mul", "div"}:
            return False
        node = users[0]
    return False


def _second(node: fx.Node) -> str:
    """Name of the second argument of a call: `p`, `other`, `fill_value`, ..."""
    return str(node.target._schema.arguments[1].name)  # type: ignore[union-attr]


def _shape(node: Any) -> tuple[int, ...]:
    meta = node.meta.get("tensor") if isinstance(node, fx.Node) else None
    return meta.shape if isinstance(meta, TensorMeta) else ()


def _per_sample(node: fx.Node) -> bool:
    shape = _shape(node)
    return len(shape) > 1 and all(size == 1 for size in shape[1:])


def without_drops(graph: fx.Graph) -> fx.Graph:
    """Returns a copy of a train graph that keeps every branch, and in which every dropout has the rate 0.

    What is left of two graphs can be compared node by node, whatever they drop and however they draw their masks.
    """
    kept = copy_graph(graph)
    for drop in find_drops(kept):
        if drop.branch is None:
            for number in drop.numbers:
                set_argument(number.node, number.argument, 0.0)
            continue
        drop.node.replace_all_uses_with(drop.branch)
        for node in reversed(drop.nodes):
            sizes = [item for item in node.all_input_nodes if isinstance(item.meta.get("tensor"), int)]
            kept.erase_node(node)
            for size in sizes:  # the number of samples, which only the mask read
                if not size.users and size.op == "call_function":
                    kept.erase_node(size)
    return kept


def set_argument(node: fx.Node, name: str, value: float) -> bool:
    """Writes a literal argument of a call, a default that was omitted too; returns whether it had another value."""
    names = [item.name for item in node.target._schema.arguments]  # type: ignore[union-attr]
    position, same = names.index(name), argument(node, name) == value
    if position <= len(node.args):
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
        node.kwargs = {key: item for key, item in node.kwargs.items() if key != name}
    else:
        node.kwargs = {**node.kwargs, name: value}
    return not same
