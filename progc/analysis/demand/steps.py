"""One step of a demand: backwards (`routes`) and forwards (`spread`).

`routes` proposes which operands to scale, and where, so that the value of a node is scaled on `mask`. `spread` computes
the factor of a node from the factors of its operands; the result is exact, or the step is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from progc.analysis.demand.contractions import Contraction, contraction
from progc.analysis.demand.factors import carry, reduce_any, same
from progc.errors import InputError
from progc.ir.deferred import values as values_of
from progc.ir.operations import (
    HOMOGENEOUS,
    MOVEMENT,
    PADDING,
    POINTWISE,
    SHAPE_ONLY,
    ZERO_PRESERVING,
    DemandRefused,
    argument,
    describe,
    distance,
    is_float,
    is_product,
    mutates,
    op_name,
    shape_of,
)
from progc.ir.program import Program, TensorMeta

Factor = torch.Tensor | list[torch.Tensor | None] | None
"""The factor of a value. None means 1; an operation with several outputs has a list."""

Route = list[tuple[fx.Node, torch.Tensor]]


def routes(program: Program, node: fx.Node, mask: torch.Tensor, factor: float) -> list[Route]:
    """Returns alternatives, best first. Each is a set of operands, all of which must be scaled on their masks.

    Args:
        program: the program that the node belongs to.
        node: the operation whose value must be scaled.
        mask: bool, with the shape of the node at the example size.
        factor: the demanded factor.

    Raises:
        DemandRefused: no factor passes through this operation.
    """
    name = op_name(node)
    if _pointwise(node) or _passes_activation(node, factor):
        return [[(_node(node.args[0]), mask)]]
    if name == "getitem" or moves(node):
        try:
            return [_pulled_back(program, node, mask)]
        except DemandRefused:
            if not bool(mask.all()):
                raise
            # The input decides where elements go, but all of them have the same factor.
            return [[(n, torch.ones((), dtype=torch.bool).expand(shape_of(n))) for n in _floats(node)]]
    if name in ("add", "sub"):
        terms = [term for term in node.args[:2] if isinstance(term, fx.Node)]
        if len(terms) == 2 or node.args[1] == 0:
            return [[(term, reduce_any(mask, shape_of(term))) for term in terms]]
        raise DemandRefused(f"{describe(node)} adds a constant, which no parameter can scale")
    if is_product(node):
        sides = [_node(side) for side in node.args[: 2 if name == "mul" else 1]]
        sides.sort(key=lambda side: (torch.Size(shape_of(side)).numel(), distance(side)))
        return [[(side, reduce_any(mask, shape_of(side)))] for side in sides]
    found = contraction(node)
    if found is None:
        raise DemandRefused(f"{describe(node)} is not linear")
    answer: list[Route] = []
    for operand in found.operands:
        own = carry(mask, found.out, operand.labels, shape_of(operand.node))
        bias = _carried_bias(found, mask)
        if own is not None and (found.bias is None or bias is not None):
            answer.append([(operand.node, own)])
            if found.bias is not None and bias is not None:
                answer[-1].append((found.bias.node, bias))
    if not answer:
        answer = _loose_routes(found, mask)
    if not found.operands:
        raise DemandRefused(f"{describe(node)} normalises and has no weight to scale")
    if not answer:
        raise DemandRefused(f"{describe(node)} mixes values with different demanded factors")
    return answer


def _loose_routes(found: Contraction, mask: torch.Tensor) -> list[Route]:
    """Returns routes that scale more values than demanded, which hold only jointly with demands for the others.

    For example, each step of a scan reads one position of a projection whose weight is shared by all positions.
    """
    answer: list[Route] = []
    for operand in found.operands:
        parts = [operand, found.bias] if found.bias is not None else [operand]
        lost = [[i for i, label in enumerate(found.out) if label not in part.labels] for part in parts]
        wide = [mask.any(dim=dims, keepdim=True).expand(mask.shape) if dims else mask for dims in lost]
        own = [carry(more, found.out, part.labels, shape_of(part.node)) for more, part in zip(wide, parts, strict=True)]
        if all(carried is not None for carried in own):
            answer.append([(part.node, carried) for part, carried in zip(parts, own, strict=True)])  # type: ignore[misc]
    return answer


def _carried_bias(found: Contraction, mask: torch.Tensor) -> torch.Tensor | None:
    if found.bias is None:
        return None
    return carry(mask, found.out, found.bias.labels, shape_of(found.bias.node))


def spread(program: Program, node: fx.Node, factors: Mapping[fx.Node, Factor]) -> Factor:
    """Returns the factor of a node, given the factors of its operands (missing: 1, NaN: unknown).

    Raises:
        DemandRefused: the result of the operation does not have a factor.
    """
    name = op_name(node)
    if name in SHAPE_ONLY or (name == "bernoulli" and getattr(node.target, "_overloadname", "") != "default"):
        return None
    if name == "getitem":
        several = factors.get(_node(node.args[0]))
        assert isinstance(several, list) and isinstance(node.args[1], int)
        return several[node.args[1]]
    if not is_float(node):
        raise DemandRefused(f"{describe(node)} reads a value that would be scaled, and does not return floats")
    if _pointwise(node):
        _only(node, factors, [node.args[0]])
        return _one(factors, node.args[0])
    if name in ZERO_PRESERVING | HOMOGENEOUS:
        return _through_activation(node, _one(factors, node.args[0]))
    if moves(node):
        given = {n: _full(factors, n) for n in node.all_input_nodes if is_float(n)}
        if mutates(node):
            given = {n: value.clone() for n, value in given.items()}
        if name in PADDING and all(same(value, value.flatten()[:1].expand(value.shape)) for value in given.values()):
            # Padding inserts zeros, which have any factor.
            return _plain(next(iter(given.values())).flatten()[0].expand(shape_of(node)))
        try:
            return _like(_run(program, node, given))
        except DemandRefused:
            alike = _alike(given.values())
            if alike is None or node.meta["tensor"] is None or isinstance(node.meta["tensor"], tuple):
                raise
            return _plain(alike.expand(shape_of(node)))
    if name in ("add", "sub"):
        return _through_sum(node, factors)
    if is_product(node):
        left, right = (torch.broadcast_to(_full(factors, item), shape_of(node)) for item in node.args[:2])
        if op_name(node) == "div":
            if bool((right == 0).any()):
                raise DemandRefused(f"{describe(node)} would divide by zero")
            right = 1 / right
        zero = (left == 0) | (right == 0)  # zero times anything, including unknown factors
        return _plain(torch.where(zero, torch.zeros((), dtype=torch.float64), left * right))
    return _through_contraction(node, factors)


def _floats(node: fx.Node) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if is_float(operand)]


def _alike(given: Collection[torch.Tensor]) -> torch.Tensor | None:
    """Returns the factor that all entries of all values have; None if they differ."""
    firsts = [value.flatten()[:1] for value in given]
    if not firsts or not all(same(v, firsts[0].expand(v.shape)) for v in given):
        return None
    return firsts[0].reshape(())


def unknown(node: fx.Node) -> Factor:
    """Returns the factor of a value that changes in an unknown way: NaN, which never equals a demanded factor.

    Raises:
        DemandRefused: the value is not a tensor, so its effects cannot be followed.
    """
    meta = node.meta.get("tensor")
    several = [item for item in (meta if isinstance(meta, tuple) else (meta,)) if isinstance(item, TensorMeta)]
    if not several:
        raise DemandRefused(f"{describe(node)} computes a number from a value that would be scaled")
    nan = torch.full((), torch.nan, dtype=torch.float64)
    if isinstance(meta, tuple):
        return [nan.expand(item.shape) for item in several]
    return nan.expand(several[0].shape)


def written(program: Program, node: fx.Node, factors: Mapping[fx.Node, Factor]) -> Factor:
    """Returns the factor of the values that an operation writes in place: that of its result, or NaN if it has none.

    Zero fits any factor, so for an operation that writes zeros the factor of the memory before it is returned.

    Raises:
        DemandRefused: it reads a scaled value, and its result is not a tensor.
    """
    name = op_name(node)
    if name == "zero" or (name == "fill" and _is_nothing(program, node.args[1])):
        return factors.get(_node(node.args[0]))
    if name == "copy":
        return _plain(torch.broadcast_to(_full(factors, node.args[1]), shape_of(node)))
    try:
        return spread(program, node, factors)
    except DemandRefused:
        return unknown(node)


def holds_zeros(tensor: torch.Tensor) -> bool:
    """Returns whether all values of a tensor are zero; False for a program without weights."""
    try:
        return not bool(values_of(tensor).detach().any())
    except InputError:
        return False


def _is_nothing(program: Program, item: Any) -> bool:
    """Returns whether an argument is the number 0, or a constant tensor that is zero."""
    while isinstance(item, fx.Node) and op_name(item) in POINTWISE:
        item = item.args[0]
    if isinstance(item, fx.Node):
        constant = item.op == "get_attr" and program.specs[str(item.target)].kind == "constant"
        return constant and holds_zeros(program.tensors[str(item.target)])
    return bool(item == 0)


def _through_activation(node: fx.Node, given: torch.Tensor | None) -> torch.Tensor | None:
    if given is None:
        return None
    name = op_name(node)
    if name in ZERO_PRESERVING and bool(((given == 0) | (given == 1)).all()):
        return given
    if name in HOMOGENEOUS and bool((given > 0).all()):
        return given
    raise DemandRefused(f"{describe(node)} does not pass this factor through")


def _through_sum(node: fx.Node, factors: Mapping[fx.Node, Factor]) -> torch.Tensor | None:
    terms = [torch.broadcast_to(_full(factors, item), shape_of(node)) for item in node.args[:2]]
    if isinstance(node.args[1], (int, float)) and node.args[1] == 0:
        terms[1] = terms[0]
    if not same(terms[0], terms[1]):
        raise DemandRefused(f"{describe(node)} adds values with different factors")
    return _plain(terms[0])


def _through_contraction(node: fx.Node, factors: Mapping[fx.Node, Factor]) -> torch.Tensor | None:
    found = contraction(node)
    if found is None:
        raise DemandRefused(f"{describe(node)} is not linear and reads a value that would be scaled")
    bias = [found.bias.node] if found.bias else []
    if found.fixed and _silent(found, factors):
        return torch.zeros((), dtype=torch.float64).expand(shape_of(node))
    _only(node, factors, [operand.node for operand in found.operands] + bias, fixed=found.fixed)
    total = torch.ones((), dtype=torch.float64)
    for operand in found.operands:
        given = _one(factors, operand.node)
        if given is not None:
            moved = carry(given, operand.labels, found.out, shape_of(node))
            if moved is None:
                raise DemandRefused(f"{describe(node)} sums over values with different factors")
            total = total * moved if total.dim() else moved
    if found.bias is not None:
        moved = carry(_full(factors, found.bias.node), found.bias.labels, found.out, shape_of(node))
        if moved is None or not same(total.expand(shape_of(node)), moved):
            raise DemandRefused(f"{describe(node)} adds a bias without the factor of its result")
    return _plain(total.expand(shape_of(node)))


def _silent(found: Contraction, factors: Mapping[fx.Node, Factor]) -> bool:
    """Returns whether an operand and the bias are zero everywhere, so that the result is zero."""
    zeros = [bool((_full(factors, operand.node) == 0).all()) for operand in found.operands]
    return any(zeros) and (found.bias is None or bool((_full(factors, found.bias.node) == 0).all()))


def _pointwise(node: fx.Node) -> bool:
    name = op_name(node)
    if name in POINTWISE:
        return is_float(node) and is_float(node.args[0])
    if name == "masked_fill":
        return node.args[2] in (0, 0.0)
    return is_product(node) and is_float(node.args[0]) and not is_float(node.args[1])


def _passes_activation(node: fx.Node, factor: float) -> bool:
    name = op_name(node)
    if factor == 0 and name in HOMOGENEOUS - ZERO_PRESERVING:
        raise DemandRefused(f"{describe(node)} has gradient zero at zero: a branch silenced there would never train")
    return (factor == 0 and name in ZERO_PRESERVING) or (factor > 0 and name in HOMOGENEOUS)


def moves(node: fx.Node) -> bool:
    """Returns True if the output consists only of elements of the operands and zeros."""
    name = op_name(node)
    if name in PADDING:
        mode = argument(node, "mode", "constant")
        return mode != "constant" or argument(node, "value") in (None, 0, 0.0)
    return name in MOVEMENT


def _pulled_back(program: Program, node: fx.Node, mask: torch.Tensor) -> Route:
    """Finds where the elements under `mask` come from: the gradient of the movement with `mask` as weights."""
    base = _node(node.args[0]) if op_name(node) == "getitem" else node
    if not moves(base):
        raise DemandRefused(f"{describe(base)} is not linear")
    leaves = {
        operand: torch.zeros(shape_of(operand), requires_grad=True)
        for operand in base.all_input_nodes
        if is_float(operand)
    }
    with torch.enable_grad():
        value = _run(program, base, {operand: leaf.clone() for operand, leaf in leaves.items()})
        if base is not node:
            value = value[node.args[1]]
        weights = torch.autograd.grad(value, list(leaves.values()), mask.to(torch.float32), allow_unused=True)
    found = zip(leaves, weights, strict=True)
    return [(operand, weight != 0) for operand, weight in found if weight is not None and bool(weight.any())]


def _run(program: Program, node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> Any:
    """Applies the movement to other values, with the sizes of the example and the index tensors of the program."""

    def resolve(item: fx.Node) -> Any:
        if item in values:
            return values[item]
        meta = item.meta.get("tensor")
        if isinstance(meta, int):
            return meta
        if item.op == "get_attr" and not is_float(item):
            return program.tensors[str(item.target)]
        raise DemandRefused(f"{describe(node)} moves values to positions that depend on the input")

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), resolve)
    # These values have other strides than those of the network, so a view may need to copy.
    target = torch.ops.aten.reshape.default if op_name(node) == "view" else node.target
    assert callable(target)
    return target(*args, **kwargs)


def moved(program: Program, node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
    """Applies the movement `node` to other values of its operands, with the same shapes.

    Raises:
        DemandRefused: the positions depend on the input of the network.
    """
    result = _run(program, node, {n: value.clone() if mutates(node) else value for n, value in values.items()})
    assert isinstance(result, torch.Tensor)
    return result


def _only(
    node: fx.Node, factors: Mapping[fx.Node, Factor], allowed: list[Any], fixed: tuple[fx.Node, ...] = ()
) -> None:
    for operand in node.all_input_nodes:
        if factors.get(operand) is not None and (operand in fixed or operand not in allowed):
            raise DemandRefused(f"{describe(node)} does not depend linearly on {operand}")


def _node(item: Any) -> fx.Node:
    if not isinstance(item, fx.Node):
        raise DemandRefused(f"{item} is a constant, not a value computed by the network")
    return item


def _one(factors: Mapping[fx.Node, Factor], item: Any) -> torch.Tensor | None:
    given = factors.get(item) if isinstance(item, fx.Node) else None
    assert not isinstance(given, list)
    return given


def _full(factors: Mapping[fx.Node, Factor], item: Any) -> torch.Tensor:
    given = _one(factors, item)
    if given is not None:
        return given
    meta = item.meta.get("tensor") if isinstance(item, fx.Node) else None
    return torch.ones((), dtype=torch.float64).expand(meta.shape if isinstance(meta, TensorMeta) else ())


def _plain(given: torch.Tensor) -> torch.Tensor | None:
    return None if bool((given == 1).all()) else given


def _like(value: Any) -> Factor:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    assert isinstance(value, torch.Tensor)
    return _plain(value)
