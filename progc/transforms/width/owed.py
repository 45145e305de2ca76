"""Finds factors for contractions that no weight absorbs: q times k, and heads tied to an embedding.

Copies along a contracted axis multiply the sum by their number. Where one operand is a parameter, its columns are
divided among the copies (lift.py). Where neither is, one of the operands must be scaled instead. The parameters that
produce it are found by the demand solver (progc/analysis/demand), and their rows are divided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.axes.dims import Atom, Dim, size_of
from progc.analysis.demand import Demand, DemandRefused, solve
from progc.ir.operations import HOMOGENEOUS, op_name
from progc.ir.program import Mode, Program
from progc.lift.entry import Scale, Split
from progc.transforms.width.widening import Widening

_MARK = 0.5
"""Factor that marks, in a solver's answer, which units take part."""


@dataclasses.dataclass(frozen=True)
class Debt:
    """One contraction over `dim` whose operands need a factor.

    Attributes:
        atoms: the growing atoms of `dim`.
        operands: per graph, names of the values of which one must be scaled.
        nodes: per graph, the contraction.
        root: whether the op itself divides by the square root of the dim's size.
        tensor, dim_of_tensor: the tied tensor whose columns cannot be divided, if that is the reason.
    """

    atoms: tuple[Atom, ...]
    part: Dim
    operands: Mapping[Mode, tuple[str, ...]]
    nodes: Mapping[Mode, str]
    root: bool
    tensor: str | None = None
    dim: int = 0

    def merged(self, other: Debt) -> Debt:
        """The same contraction, seen in the other graph."""
        return dataclasses.replace(
            self, operands={**self.operands, **other.operands}, nodes={**self.nodes, **other.nodes}
        )


def settle(
    program: Program,
    widening: Widening,
    debts: list[Debt],
    scales: dict[str, list[Scale]],
    splits: dict[str, list[Split]],
) -> list[str]:
    """Finds parameters for every debt; fills `scales` and `splits` by tensor name.

    Returns:
        Obstacles: the debts that no parameter can pay.
    """
    failed: dict[tuple[Atom, ...], list[tuple[Debt, str]]] = {}
    for debt in debts:
        refused = _settled(program, widening, [debt], scales, splits)
        if refused is not None:
            failed.setdefault(debt.atoms, []).append((debt, refused))
    obstacles = []
    for open_ in failed.values():
        # Steps of one scan read parts of one value: no step can be paid alone, but all of them together can.
        if len(open_) > 1 and _settled(program, widening, [debt for debt, _ in open_], scales, splits) is None:
            continue
        for debt, refused in open_:
            axes = ", ".join(a.name for atom in debt.atoms if (a := widening.table.axis_of(atom)) is not None)
            where = debt.nodes.get("eval") or next(iter(debt.nodes.values()))
            obstacles.append(
                f"{axes}: copies add up at {where}, and no parameter can absorb the factor: {refused}"
                + _nearest(widening, debt)
            )
    return obstacles


def _settled(
    program: Program,
    widening: Widening,
    debts: Sequence[Debt],
    scales: dict[str, list[Scale]],
    splits: dict[str, list[Split]],
) -> str | None:
    """Pays some debts by the same side of their contractions; returns the first reason if neither side can pay."""
    reasons = []
    for position in range(min(len(names) for debt in debts for names in debt.operands.values())):
        try:
            _pay(program, widening, debts, position, scales, splits)
        except DemandRefused as refused:
            reasons.append(str(refused))
        else:
            return None
    return reasons[0]


def _nearest(widening: Widening, debt: Debt) -> str:
    """The nearest sizes that need no uneven shares, if those are what failed."""
    atom = next((a for a in debt.atoms if widening.new[a] % a.size), None)
    if atom is None or debt.tensor is not None:
        return ""
    lower = widening.new[atom] // atom.size * atom.size
    return f"; {atom.size} to {widening.new[atom]} is not an integer factor, {lower} and {lower + atom.size} are"


def _pay(
    program: Program,
    widening: Widening,
    debts: Sequence[Debt],
    position: int,
    scales: dict[str, list[Scale]],
    splits: dict[str, list[Split]],
) -> None:
    debt = debts[0]
    if any(other.root != debt.root or widening.size(other.part) != widening.size(debt.part) for other in debts):
        raise DemandRefused("contractions over the same axis need different factors")
    operands = [{mode: names[position] for mode, names in other.operands.items()} for other in debts]
    for other, nodes in zip(debts, operands, strict=True):
        _read_once(program, other, nodes)
        if any(len(set(names)) < len(names) for names in other.operands.values()):
            raise DemandRefused("one value is both operands")
    answer = solve(program, [Demand(dict(nodes), _MARK) for nodes in operands])
    ratio = widening.size(debt.part) / size_of(debt.part)
    extra = math.sqrt(ratio) if debt.root else 1.0
    scaled = {name for name, _ in answer}
    bent = any(_bends(program.graphs[mode], node, scaled) for nodes in operands for mode, node in nodes.items())
    even = widening.index_map(debt.part).uniform
    factors: list[tuple[str, Scale]] = []
    shares: list[tuple[str, Split]] = []
    for name, scale in answer:
        where = tuple(value == _MARK for value in scale.values)
        if any(value not in (1.0, _MARK) for value in scale.values):
            raise DemandRefused(f"{name} would have to divide its weights twice")
        only = None if all(where) else scale.dim
        places = {_shared_dim(program, widening, debt, nodes, name, only) for nodes in operands}
        place = places.pop() if len(places) == 1 and not bent else None
        if place is not None:
            dim = axes_of(program).tensor_dims[name][place]
            present = set(widening.grows(dim))
            over = widening.index_map(dim, set(debt.atoms)) if present != set(debt.atoms) else None
            shares.append((name, Split(place, None if all(where) else where, over)))
            factor = extra
        elif even:
            factor = extra / ratio
        else:
            raise DemandRefused(f"{name} can absorb only one factor, and its units have different numbers of copies")
        if factor != 1.0:
            factors.append((name, Scale(scale.dim, tuple(factor if on else 1.0 for on in where))))
    for name, made in factors:
        scales.setdefault(name, []).append(made)
    for name, split in shares:
        splits.setdefault(name, []).append(split)


def _shared_dim(
    program: Program, widening: Widening, debt: Debt, nodes: Mapping[Mode, str], name: str, only: int | None
) -> int | None:
    """The dim of a tensor whose units are those that the debt sums over; None if no dim certainly is.

    Shares along it may differ between copies. A factor that is the same for all copies is right in any case.
    """
    atoms = set(debt.atoms)
    for mode, node in nodes.items():
        value = axes_of(program).values[mode, node]
        if sum(bool(atoms & set(widening.grows(dim))) for dim in value.dims) != 1:
            return None
    carrying = []
    for position, dim in enumerate(axes_of(program).tensor_dims.get(name, ())):
        roles = widening.table.sides.get((name, position), {})
        if any("producer" in roles.get(atom, ()) for atom in atoms & set(widening.grows(dim))):
            carrying.append((position, all(roles.get(atom) == {"producer"} for atom in atoms)))
    if len(carrying) == 1 and carrying[0][1] and only in (None, carrying[0][0]):
        return carrying[0][0]
    return None


def _bends(graph: fx.Graph, operand: str, names: set[str]) -> bool:
    """Whether an op such as relu is between the scaled tensors and the operand.

    It preserves a positive factor, but not shares that differ between input weights.
    """
    below: dict[fx.Node, bool] = {}  # nodes that depend on a scaled tensor, and whether such an op is on the path
    for node in graph.nodes:
        above = [below[source] for source in node.all_input_nodes if source in below]
        if above:
            below[node] = any(above) or op_name(node) in HOMOGENEOUS
        elif node.op == "get_attr" and str(node.target) in names:
            below[node] = False
        if node.name == operand:
            return below.get(node, False)
    return False


def _read_once(program: Program, debt: Debt, nodes: Mapping[Mode, str]) -> None:
    """Checks that the scaled operand has no reader except the contraction."""
    for mode, name in nodes.items():
        node = next(n for n in program.graphs[mode].nodes if n.name == name)
        others = [user.name for user in node.users if user.name != debt.nodes[mode]]
        if others:
            raise DemandRefused(f"`{name}` is also read by {others[0]}")
