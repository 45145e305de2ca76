"""Contractions that owe a factor: q times k, and heads tied to an embedding.

Copies along a contracted axis multiply the sum by their number. Where a parameter is the other operand, its
columns share (lift.py). Where none is, one of the operands must come out with the shares, so the parameters
that make it are found by a demand (progc/demand) and share their rows instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from progc.axes.dims import Atom, Dim, size_of
from progc.demand import Demand, DemandRefused, solve
from progc.lift import Scale, Split
from progc.program import Mode, Program

if TYPE_CHECKING:
    from progc.width_plan import Widening

_MARK = 0.5
"""Factor that marks, in a solver's answer, which units take part."""


@dataclasses.dataclass(frozen=True)
class Debt:
    """One contraction over `dim` that needs its operands scaled.

    Attributes:
        atoms: the growing atoms of `dim`.
        operands: per graph, names of the values of which one must carry the shares.
        nodes: per graph, the contraction.
        root: the op divides by the square root of the dim's size itself.
        tensor, dim_of_tensor: the tied tensor that cannot share, if that is the reason.
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
        Obstacles: the debts that nothing can pay.
    """
    obstacles = []
    for debt in debts:
        refusals = []
        for position in range(len(next(iter(debt.operands.values())))):
            nodes = {mode: names[position] for mode, names in debt.operands.items()}
            try:
                _pay(program, widening, debt, nodes, scales, splits)
                break
            except DemandRefused as refused:
                refusals.append(str(refused))
        else:
            axes = ", ".join(a.name for atom in debt.atoms if (a := widening.table.axis_of(atom)) is not None)
            where = debt.nodes.get("eval") or next(iter(debt.nodes.values()))
            obstacles.append(f"{axes}: copies add up at {where}, and no parameter can take the factor: {refusals[0]}")
    return obstacles


def _pay(
    program: Program,
    widening: Widening,
    debt: Debt,
    nodes: Mapping[Mode, str],
    scales: dict[str, list[Scale]],
    splits: dict[str, list[Split]],
) -> None:
    _read_once(program, debt, nodes)
    answer = solve(program, [Demand(dict(nodes), _MARK)])
    ratio = widening.size(debt.part) / size_of(debt.part)
    extra = math.sqrt(ratio) if debt.root else 1.0
    paid: list[tuple[str, Scale, Split | None]] = []
    for name, scale in answer:
        where = tuple(value == _MARK for value in scale.values)
        if any(value not in (1.0, _MARK) for value in scale.values):
            raise DemandRefused(f"{name} would have to share twice")
        dim = program.axes.tensor_dims[name][scale.dim] if name in program.axes.tensor_dims else ()
        present = set(widening.grows(dim))
        if set(debt.atoms) <= present:
            over = widening.index_map(dim, set(debt.atoms)) if present != set(debt.atoms) else None
            paid.append((name, scale, Split(scale.dim, None if all(where) else where, over)))
            factor = extra
        else:
            paid.append((name, scale, None))
            factor = extra / ratio
        if factor != 1.0:
            values = tuple(factor if on else 1.0 for on in where)
            scales.setdefault(name, []).append(Scale(scale.dim, values))
    for name, _, split in paid:
        if split is not None:
            splits.setdefault(name, []).append(split)


def _read_once(program: Program, debt: Debt, nodes: Mapping[Mode, str]) -> None:
    """The scaled operand may have no reader but the contraction."""
    for mode, name in nodes.items():
        node = next(n for n in program.graphs[mode].nodes if n.name == name)
        others = [user.name for user in node.users if user.name != debt.nodes[mode]]
        if others:
            raise DemandRefused(f"`{name}` is also read by {others[0]}")
