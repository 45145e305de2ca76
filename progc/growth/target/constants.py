"""Adopts factors that a model class computes from its sizes, and compensates for them in parameters.

A class that writes its attention scale as `head_dim ** -0.5`, or multiplies an embedding by the root of the width, has
another number in its graph at another size. If the number is a factor, the parameters before or after it absorb the
inverse ratio (progc/analysis/demand finds and proves them), so that the product does not change. Every other number is
left to `differences`, which reports it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torch import fx

from progc.analysis.demand import Demand, DemandRefused, solve
from progc.errors import TargetError
from progc.ir.deferred import values
from progc.ir.differences import pairs, where
from progc.ir.graphs import copy_graph, shape
from progc.ir.operations import op_name
from progc.ir.program import MODES, Mode, Program
from progc.lift.entry import Scale, TensorLift
from progc.lift.lift import Lift
from progc.pipeline.base import PassResult

_MUL = ("mul",)
_DIV = ("div",)
_ATTENTION = "scaled_dot_product_attention"


@dataclasses.dataclass(frozen=True)
class _Factor:
    """One node with a factor that differs.

    Attributes:
        node: name in the graph of the program.
        at: position or keyword of the number; None if it is a tensor.
        new: the number in the target.
        tensor: the constant or buffer that holds the number, if any.
        ratio: the factor by which the value of the node would change.
        operands: values that can absorb the inverse: the node itself, or (attention) one of its inputs.
    """

    node: fx.Node
    at: int | str | None
    old: float | None
    new: Any
    tensor: str | None
    ratio: float
    operands: tuple[str, ...]


def take_constants(program: Program, target: Program) -> PassResult:
    """Returns the program with the target's factors, compensated in its parameters; sizes must be equal.

    Returns:
        The same object if no factor differs or the graphs do not correspond.

    Raises:
        TargetError: no parameter can absorb the inverse of a factor; names operation, node, both numbers and the
            reason.
    """
    found: dict[Mode, list[_Factor]] = {}
    for mode in MODES:
        aligned = pairs(program, target, mode)
        if aligned is None:
            return PassResult(program, False, lossless=True)
        found[mode] = [factor for a, b in aligned for factor in _factors(program, target, a, b)]
    ordinals = [[(op_name(factor.node), factor.old, factor.new) for factor in found[mode]] for mode in MODES]
    if not found["eval"] or ordinals[0] != ordinals[1]:
        return PassResult(program, False, lossless=True)
    scales: dict[str, list[Scale]] = {}
    notes: dict[str, None] = {}
    for position, factor in enumerate(found["eval"]):
        both = {mode: found[mode][position] for mode in MODES}
        try:
            for name, scale in _paid(program, both):
                scales.setdefault(name, []).append(scale)
        except DemandRefused as refused:
            raise TargetError(
                f"{target.class_name} computes a different function at its size: {where(factor.node)}: "
                f"{factor.node.target} has {_number(factor.old)} where the target has {_number(factor.new)}, "
                f"and no parameter can absorb the factor {1 / factor.ratio:.4g}: {refused}"
            ) from refused
        notes.setdefault(
            f"{op_name(factor.node)} by {_number(factor.old)} is by {_number(factor.new)} in the target; "
            f"parameters before it absorb the factor {1 / factor.ratio:.4g}"
        )
    fills = {factor.tensor: factor.new for factor in found["eval"] if factor.tensor is not None}
    entries = [
        TensorLift(name, name, scales=tuple(scales.get(canonical, ())), fill=fills.get(name))
        for name in program.tensors
        if (canonical := program.tied.get(name, name)) in scales or name in fills
    ]
    lift = Lift(tuple(entries))
    grown = lift.apply(program.tensors)
    graphs = {mode: _rewritten(program.graphs[mode], found[mode]) for mode in MODES}
    changed = program.replace(graphs=graphs, tensors={name: grown[name] for name in program.tensors})
    return PassResult(changed, True, {"factors": len(found["eval"])}, lift, tuple(notes), True)


def _factors(program: Program, target: Program, ours: fx.Node, theirs: fx.Node) -> Iterator[_Factor]:
    """Where a product or an attention has another number than in the target."""
    name = op_name(ours)
    if name == _ATTENTION:
        old, new = ours.kwargs.get("scale"), theirs.kwargs.get("scale")
        if old != new:
            query = ours.args[0]
            assert isinstance(query, fx.Node)
            default = shape(query)[-1] ** -0.5
            ratio = _ratio(new if new is not None else default, old if old is not None else default)
            operands = tuple(str(node) for node in ours.args[:2])
            yield _Factor(ours, "scale", old, new, None, ratio, operands)  # type: ignore[arg-type]
        return
    if name not in (*_MUL, *_DIV) or len(ours.args) < 2 or len(theirs.args) < 2:
        return
    for at in (0, 1) if name in _MUL else (1,):
        a, b = ours.args[at], theirs.args[at]
        old, new = _value(program, a), _value(target, b)
        if old is None or new is None or old == new or isinstance(a, fx.Node) != isinstance(b, fx.Node):
            continue
        ratio = _ratio(new, old) if name in _MUL else _ratio(old, new)
        tensor = str(a.target) if isinstance(a, fx.Node) else None
        yield _Factor(ours, None if tensor else at, old, new if tensor else b, tensor, ratio, (ours.name,))


def _value(program: Program, argument: Any) -> float | None:
    """The number that an argument holds: a literal, or a one-element tensor that no checkpoint holds."""
    if isinstance(argument, float) or (isinstance(argument, int) and not isinstance(argument, bool)):
        return float(argument)
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        tensor, spec = program.tensors[str(argument.target)], program.specs[str(argument.target)]
        if tensor.numel() == 1 and tensor.is_floating_point() and (spec.kind == "constant" or not spec.persistent):
            return float(values(tensor))
    return None


def _ratio(a: Any, b: Any) -> float:
    return float(a) / float(b) if b else math.inf


def _paid(program: Program, both: dict[Mode, _Factor]) -> list[tuple[str, Scale]]:
    """Parameters that absorb the inverse of a factor.

    Raises:
        DemandRefused: none can.
    """
    ratio = both["eval"].ratio
    if not (math.isfinite(ratio) and ratio > 0):
        raise DemandRefused("one of the two is zero, or they differ in sign")
    if both["eval"].tensor is not None:
        _read_by_products_only(program, both)
    refusals = []
    for position in range(len(both["eval"].operands)):
        nodes = {mode: factor.operands[position] for mode, factor in both.items()}
        try:
            if nodes["eval"] != both["eval"].node.name:
                _read_once(program, nodes)
            return solve(program, [Demand(nodes, 1 / ratio)])
        except DemandRefused as refused:
            refusals.append(refused)
    raise refusals[0]


def _read_by_products_only(program: Program, both: dict[Mode, _Factor]) -> None:
    for mode, factor in both.items():
        for node in program.graphs[mode].nodes:
            if node.op == "get_attr" and node.target == factor.tensor:
                for user in node.users:
                    if op_name(user) not in (*_MUL, *_DIV):
                        raise DemandRefused(f"{factor.tensor} is also read by {user.name}")


def _read_once(program: Program, nodes: dict[Mode, str]) -> None:
    for mode, name in nodes.items():
        node = next(node for node in program.graphs[mode].nodes if node.name == name)
        if len(node.users) > 1:
            raise DemandRefused(f"`{name}` is also read by {list(node.users)[1].name}")


def _rewritten(graph: fx.Graph, factors: list[_Factor]) -> fx.Graph:
    copy = copy_graph(graph)
    nodes = {node.name: node for node in copy.nodes}
    for factor in factors:
        node = nodes[factor.node.name]
        if isinstance(factor.at, int):
            args = list(node.args)
            args[factor.at] = factor.new
            node.args = tuple(args)
        elif factor.at is not None:
            kwargs = {key: value for key, value in node.kwargs.items() if key != factor.at}
            node.kwargs = kwargs if factor.new is None else {**kwargs, factor.at: factor.new}
    return copy


def _number(value: Any) -> str:
    return "the default" if value is None else f"{value:.6g}"
