"""The solver of scale demands: searches backwards from a value to parameters, then proves the answer forwards.

Proposals come from the eval graph, which has no stochastic operations. A proposal is accepted only if multiplying its
parameters gives exactly the demanded factor on the value in *both* graphs and changes no other result of either graph.
The proof follows the factors from every use of each scaled parameter, so shared and tied parameters are covered.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from progc.analysis.demand.factors import as_scale, expanded, same
from progc.analysis.demand.steps import Factor, holds_zeros, routes, spread, unknown, written
from progc.ir.graphs import first_alias, stale_reads
from progc.ir.operations import RUNNING_NORMS, DemandRefused, argument, describe, op_name, shape_of
from progc.ir.program import MODES, Mode, Program
from progc.lift.entry import Scale

_PROPOSALS = 32
"""Maximum number of proposals for one demand, and of combinations for demands that only hold jointly."""

_VISITS = 4000
"""Maximum number of nodes visited in one search."""

_STEEP = frozenset(("sqrt", "rsqrt", "log", "log2", "log10", "reciprocal", "div"))
"""Operations whose gradient at zero is infinite (for `div`, with respect to the divisor)."""

Scales = dict[str, tuple[Scale, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Demand:
    """A value that must be multiplied by `factor` where `mask` is true.

    Attributes:
        nodes: name of the node of the value in each graph.
        factor: at least 0.
        mask: bool, with the shape of the value at the example size; None for the whole value.
    """

    nodes: Mapping[Mode, str]
    factor: float
    mask: torch.Tensor | None = None


def solve(program: Program, demands: Sequence[Demand]) -> list[tuple[str, Scale]]:
    """Finds parameters to scale so that every demand is met and nothing else changes.

    Returns:
        Canonical parameter names, each with factors along one dim. A name may occur more than once.

    Raises:
        DemandRefused: no parameters can take the factor; names the operation and the node.
    """
    graphs = {mode: _Graph(program, program.graphs[mode]) for mode in MODES}
    alone: list[Scales] = []
    together: list[tuple[Demand, list[Scales], DemandRefused]] = []
    for demand in demands:
        proposals = _proposals(program, graphs["eval"], demand)
        failure: DemandRefused | None = None
        for proposal in proposals:
            try:
                _prove(graphs, [demand], proposal)
            except DemandRefused as error:
                failure = failure or error
            else:
                alone.append(proposal)
                break
        else:
            assert failure is not None
            together.append((demand, proposals, failure))
    answer = _merged(alone, multiply=True)
    if together:
        # Demands that share a parameter (tied blocks, one projection for two branches) may hold only jointly.
        answer = _merged([answer, _jointly(graphs, together)], multiply=True)
    if len(demands) > 1:
        _prove(graphs, demands, answer)
    return [(name, scale) for name, scales in answer.items() for scale in scales]


def _jointly(graphs: Mapping[Mode, _Graph], open_: Sequence[tuple[Demand, list[Scales], DemandRefused]]) -> Scales:
    if len(open_) > 1:
        for choice in itertools.islice(itertools.product(*(proposals for _, proposals, _ in open_)), _PROPOSALS):
            merged = _merged(choice, multiply=False)
            try:
                _prove(graphs, [demand for demand, _, _ in open_], merged)
            except DemandRefused:
                continue
            return merged
    raise open_[0][2]


def _merged(parts: Sequence[Scales], multiply: bool) -> Scales:
    merged: Scales = {}
    for part in parts:
        for name, scales in part.items():
            known = merged.get(name, ())
            if multiply or not known:
                merged[name] = (*known, *scales)
            elif known != scales:
                merged[name] = (*known, *(scale for scale in scales if scale not in known))
    return merged


class _Graph:
    """A graph with the lookup tables of the search."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.program = program
        self.nodes = {node.name: node for node in graph.nodes}
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.stale = list(stale_reads(graph))
        self.uses: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                self.uses.setdefault(str(node.target), []).append(node)


def _proposals(program: Program, graph: _Graph, demand: Demand) -> list[Scales]:
    """Returns sets of scaled parameters that may meet the demand, best first; at least one.

    Parameters that are zero already come first: if the other side of the same product became zero as well, neither
    side would get a gradient.
    """
    node = graph.nodes[demand.nodes["eval"]]
    mask = demand.mask if demand.mask is not None else torch.ones((), dtype=torch.bool).expand(shape_of(node))
    search = _DemandSearch(program, demand.factor)
    found: list[Scales] = []
    reasons: list[str] = []
    for masks in itertools.islice(search.walk(node, mask), _PROPOSALS):
        try:
            found.append({name: (_scale(name, own, demand.factor),) for name, own in masks.items()})
        except DemandRefused as error:
            reasons.append(str(error))
    if not found:
        raise DemandRefused(f"no parameter can scale the value of {describe(node)}: {(reasons + search.reasons)[0]}")
    if demand.factor == 0:
        found.sort(key=lambda scales: not all(holds_zeros(program.tensors[name]) for name in scales))
    return found


def _scale(name: str, mask: torch.Tensor, factor: float) -> Scale:
    found = as_scale(mask, factor)
    if found is None:
        raise DemandRefused(f"parameter {name} would need different factors along two dims")
    return Scale(*found)


class _DemandSearch:
    """A depth-first search backwards, with alternatives at every product."""

    def __init__(self, program: Program, factor: float) -> None:
        self.program, self.factor = program, factor
        self.reasons: list[str] = []
        self.visits = 0

    def walk(self, node: fx.Node, mask: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        """Yields masks over parameters, by canonical name."""
        self.visits += 1
        if self.visits > _VISITS:
            return
        if node.op == "get_attr":
            name = str(node.target)
            if self.program.specs[name].kind == "parameter":
                yield {name: mask}
            else:
                self.reasons.append(f"{name} is not a parameter")
            return
        if node.op != "call_function":
            self.reasons.append(f"{node} is an input of the network")
            return
        try:
            alternatives = routes(self.program, node, mask, self.factor)
        except DemandRefused as error:
            self.reasons.append(str(error))
            return
        for route in alternatives:
            yield from self._all_of(route)

    def _all_of(self, route: Sequence[tuple[fx.Node, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        if not route:
            yield {}
            return
        (node, mask), *rest = route
        for first in self.walk(node, mask):
            for others in self._all_of(rest):
                union = dict(first)
                for name, own in others.items():
                    union[name] = union[name] | own if name in union else own
                yield union


def _prove(graphs: Mapping[Mode, _Graph], demands: Sequence[Demand], scales: Scales) -> None:
    """Follows the factors forwards in both graphs.

    Raises:
        DemandRefused: a demanded value gets a different factor, or another result changes.
    """
    for mode, graph in graphs.items():
        wanted = {graph.nodes[demand.nodes[mode]]: demand for demand in demands}
        factors: dict[fx.Node, Factor] = {}
        met: dict[fx.Node, Factor] = {}
        todo: list[tuple[int, fx.Node]] = []
        for name, parts in scales.items():
            for node in graph.uses.get(name, ()):
                first, *others = (expanded(part.dim, part.values, shape_of(node)) for part in parts)
                factor = first
                for other in others:
                    factor = factor * other
                factors[node] = factor
                todo.extend((graph.order[user], user) for user in node.users)
        heapq.heapify(todo)
        done: set[fx.Node] = set()
        reason: DemandRefused | None = None
        while todo:
            _, node = heapq.heappop(todo)
            if node in done:
                continue
            done.add(node)
            if node.op == "output":
                raise reason or DemandRefused("a scaled value is an output of the network")
            _check_statistics(node, factors)
            _check_slope(node, factors)
            try:
                result = spread(graph.program, node, factors)
            except DemandRefused as error:
                # An unknown value is harmless if it is multiplied by zero further on (squeeze-and-excitation).
                reason, result = reason or error, unknown(node)
            if node in wanted:
                _check_result(node, result, wanted.pop(node), reason)
                met[node], result = result, None
            if result is not None:
                factors[node] = result
                for user in node.users:
                    heapq.heappush(todo, (graph.order[user], user))
        for node, demand in wanted.items():
            _check_result(node, None, demand, reason)
        _check_writes(graph, factors, met)


def _check_result(node: fx.Node, result: Factor, demand: Demand, reason: DemandRefused | None) -> None:
    expected = torch.full((), demand.factor, dtype=torch.float64)
    if demand.mask is not None:
        expected = torch.where(demand.mask, expected, torch.ones((), dtype=torch.float64))
    found = result if isinstance(result, torch.Tensor) else torch.ones((), dtype=torch.float64)
    shape = shape_of(node)
    if isinstance(result, list) or not same(found.expand(shape), expected.expand(shape)):
        raise reason or DemandRefused(
            f"the value of {describe(node)} would not be multiplied by exactly {demand.factor:g}"
        )


def _check_slope(node: fx.Node, factors: Mapping[fx.Node, Factor]) -> None:
    """Refuses a silenced value that reaches a square root at zero: the gradient there is infinite, and becomes NaN.

    A constant that is added before (the epsilon of a norm) keeps the argument away from zero.
    """
    name = op_name(node)
    exponent = argument(node, "exponent")
    small = name == "pow" and not (isinstance(exponent, (int, float)) and exponent >= 1)
    if name not in _STEEP and not small:
        return
    operand = node.args[1 if name == "div" and len(node.args) > 1 else 0]
    given = factors.get(operand) if isinstance(operand, fx.Node) else None
    if not isinstance(operand, fx.Node) or not isinstance(given, torch.Tensor):
        return
    kept = op_name(operand) in ("add", "clamp_min", "clamp") and isinstance(operand.args[1], float)
    if not kept and bool(((given == 0) | given.isnan()).any()):
        raise DemandRefused(f"{describe(node)} would read a silenced value, and its gradient at zero is infinite")


def _check_writes(graph: _Graph, factors: Mapping[fx.Node, Factor], met: Mapping[fx.Node, Factor]) -> None:
    """Refuses in-place writes after which memory that is read later has a different factor than before.

    `y = self.up(x); y[:, 0] = self.row` writes to a view of `y`: what reads `y` afterwards reads the row, too.

    Args:
        graph: the graph that was followed.
        factors: the factors that were found.
        met: factors of the demanded values. Values computed from them are not checked, only their own memory.
    """
    known = {**factors, **met}
    for node in graph.order if graph.stale else ():
        base = None if node in met else first_alias(node, write=False)
        if base is not None and known.get(base) is not None:
            try:
                known[node] = spread(graph.program, node, known)
            except DemandRefused:
                known[node] = unknown(node)
    for writer, reader in graph.stale:
        target = first_alias(writer, write=True)
        assert target is not None
        before = known.get(target)
        if before is None and factors.keys().isdisjoint(writer.all_input_nodes):
            continue
        after = written(graph.program, writer, known)
        assert not isinstance(before, list)
        if isinstance(after, list) or not same(*torch.broadcast_tensors(_or_one(before), _or_one(after))):
            raise DemandRefused(f"{describe(writer)} changes {target} in place, and {reader} reads its memory later")


def _or_one(factor: torch.Tensor | None) -> torch.Tensor:
    return torch.ones((), dtype=torch.float64) if factor is None else factor


def _check_statistics(node: fx.Node, factors: Mapping[fx.Node, Factor]) -> None:
    """Refuses a scaled value from which running statistics are computed."""
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node) or factors.get(target) is None:
        return
    silent = [factors.get(n) for n in (argument(node, "weight"), argument(node, "bias")) if isinstance(n, fx.Node)]
    if len(silent) == 2 and all(isinstance(own, torch.Tensor) and not own.any() for own in silent):
        return  # a norm whose result is zero for any statistics
    if op_name(node) in RUNNING_NORMS and argument(node, "running_mean") is not None:
        raise DemandRefused(f"{describe(node)} keeps running statistics of a value that would be scaled")
