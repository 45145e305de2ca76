"""Answers small questions about the data flow: which tensor a value is, what is a bias, what is a normalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import fx

from progc.analysis.demand.contractions import contraction
from progc.ir.operations import (
    MOVEMENT,
    NORMS,
    POINTWISE,
    DemandRefused,
    argument,
    is_float,
    is_product,
    op_name,
)
from progc.ir.program import TensorMeta

_MEANS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "linalg_vector_norm"}
_TO_SCALE = {"rsqrt", "sqrt", "pow", "reciprocal", "add", "mul", "div", "clamp", "clamp_min", "maximum", "square"}
_LOOKUPS = {"embedding", "embedding_bag", "_grouped_mm", "transformers.grouped_mm_fallback"}
_DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Affine:
    """Names of the gain and the shift of one normalisation; None where it has none."""

    gain: str | None
    shift: str | None


def shape(node: object) -> tuple[int, ...]:
    """Returns the shape at the example size; empty for a value that is not a single tensor."""
    meta = node.meta.get("tensor") if isinstance(node, fx.Node) else None
    return meta.shape if isinstance(meta, TensorMeta) else ()


def parameter_at(node: object) -> str | None:
    """Returns the name of the tensor that a value is (moved, cast, or plus a literal); None if it is computed."""
    for _ in range(_DEPTH):
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            return str(node.target)
        sources = [source for source in node.all_input_nodes if is_float(source)]
        literal = op_name(node) in ("add", "mul") and len(sources) == 1
        if op_name(node) not in MOVEMENT | POINTWISE and not literal:
            return None
        node = sources[0] if len(sources) == 1 else None
    return None


def weights_of(node: fx.Node) -> tuple[str, ...]:
    """Returns the names of the tensors that a node contracts its input with, or looks up rows in."""
    if node.op != "call_function" or op_name(node) in NORMS:
        return ()
    if op_name(node) in _LOOKUPS:
        return tuple(name for source in node.all_input_nodes if (name := parameter_at(source)) is not None)
    try:
        found = contraction(node)
    except DemandRefused:
        return ()
    operands = found.operands if found is not None and len(found.operands) > 1 else ()
    return tuple(name for operand in operands if (name := parameter_at(operand.node)) is not None)


def bias_of(node: fx.Node) -> tuple[str, ...]:
    """Returns the names of the tensors added to a contraction's result, by the operation or by a following addition."""
    if not weights_of(node) or op_name(node) in _LOOKUPS:
        return ()
    found = contraction(node)
    assert found is not None
    names = [parameter_at(found.bias.node)] if found.bias is not None else []
    for user in node.users:
        if op_name(user) == "add" and len(user.args) > 1:
            other = user.args[1] if user.args[0] is node else user.args[0]
            if sum(size > 1 for size in shape(other)) <= 1:
                names.append(parameter_at(other))
    return tuple(name for name in names if name is not None)


def affine(node: fx.Node) -> Affine | None:
    """Returns gain and shift if the node is a normalisation, or the last product or sum of one that is written out."""
    name = op_name(node)
    if name in NORMS:
        return Affine(parameter_at(argument(node, "weight")), parameter_at(argument(node, "bias")))
    if name == "mul":
        for gain, value in _orders(node):
            if parameter_at(gain) is not None and _is_normalised(value):
                return Affine(parameter_at(gain), None)
    if name == "add":
        for shift, value in _orders(node):
            gained = _uncast(value)
            if parameter_at(shift) is not None and op_name(gained) == "mul" and affine(gained) is not None:
                return Affine(None, parameter_at(shift))
    return None


def _orders(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    if len(node.args) > 1 and all(isinstance(item, fx.Node) for item in node.args[:2]):
        a, b = node.args[:2]
        yield from ((a, b), (b, a))  # type: ignore[misc]


def _uncast(node: fx.Node) -> fx.Node:
    while op_name(node) in POINTWISE and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_normalised(value: fx.Node) -> bool:
    """Whether a value was multiplied or divided by a root of its mean square."""
    value = _uncast(value)
    if value.op != "call_function" or not is_product(value):
        return False
    for scale, other in _orders(value):
        smaller = 1 in shape(scale) and shape(scale) != shape(other)
        if smaller and _is_statistic(scale, _DEPTH):
            return True
    return False


def _is_statistic(node: fx.Node, limit: int) -> bool:
    """Whether a value is computed from a reduction by powers, roots and constants alone."""
    if limit == 0 or node.op != "call_function":
        return False
    if op_name(node) in _MEANS:
        return True
    if op_name(node) == "getitem" or op_name(node) in _TO_SCALE or op_name(node) in POINTWISE:
        sources = [source for source in node.all_input_nodes if is_float(source) and source.op == "call_function"]
        return len(sources) == 1 and _is_statistic(sources[0], limit - 1)
    return False


def nearest(node: fx.Node) -> set[str]:
    """Returns the weights of the nearest contractions before a node, by name."""
    found: set[str] = set()
    seen, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                own = weights_of(source)
                found.update(own)
                todo += [] if own else [source]
    return found
