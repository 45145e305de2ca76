"""Plans a width growth: from new axis sizes to a lift, with the reasons why it is exact or not.

Every axis gets one kind of growth. `copy`: units repeat, and consumers divide their weights among the copies. `pad`:
old units are scaled, new ones are zero or the mean (progc/analysis/padding). `free`: new units that old consumers
ignore. `random`: new random units. The analysis decides here, op by op, whether the function is preserved
(docs/growth.md sections 0.1 and 1); running both programs afterwards only confirms it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from progc.analysis.axes import axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom, Dim
from progc.analysis.axes.records import DECIDING, Event
from progc.ir.program import Program
from progc.lift.entry import Scale, Split, TensorLift
from progc.lift.lift import NOISE, Lift
from progc.transforms.width.owed import Debt, settle
from progc.transforms.width.widening import AxisGrowth, Widening, conflicts


@dataclasses.dataclass(frozen=True)
class WidthPlan:
    """A planned width growth.

    Attributes:
        growths: the growth of every growing axis.
        lift: how the tensors grow.
        obstacles: why the growth is not exact, one sentence each with axis, operation and reason; empty if it is exact.
        notes: anything else that the user should know.
    """

    growths: tuple[AxisGrowth, ...]
    lift: Lift
    obstacles: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def lossless(self) -> bool:
        """Whether the analysis proves that the function is preserved."""
        return not self.obstacles


def plan_widths(
    program: Program, sizes: Mapping[str, int], *, init: str = "copy", seed: int = 0, noise: float = NOISE
) -> WidthPlan:
    """Plans how `program` gets axes of the given sizes.

    Args:
        program: the program to widen.
        sizes: axis name to new size.
        init: `copy`, `zero` or `random`.

    Raises:
        TargetError: a size below the present one, or an axis that cannot grow.
    """
    widening = Widening(axes_of(program), sizes, init)
    obstacles = list(dict.fromkeys(_obstacles(widening)))
    if init == "random" and widening.new:
        obstacles.append("random new units change the function")
        debts: list[Debt] = []
    else:
        debts = _debts(widening)
    scales: dict[str, list[Scale]] = {}
    owed_splits: dict[str, list[Split]] = {}
    if debts and not obstacles:
        obstacles.extend(settle(program, widening, debts, scales, owed_splits))
    paid = {(debt.tensor, debt.dim) for debt in debts if debt.tensor is not None}
    entries = []
    for name, dims in axes_of(program).tensor_dims.items():
        entry = _tensor_lift(program, widening, name, dims, scales, owed_splits, paid)
        if entry is not None:
            entries.append(entry)
    lift = Lift(tuple(entries), seed=seed, noise=noise)
    notes = tuple(f"{g.axis}: {g.kind}, because {g.why}" for g in widening.growths if g.why)
    return WidthPlan(tuple(widening.growths), lift, tuple(obstacles), notes)


def _tensor_lift(
    program: Program,
    widening: Widening,
    name: str,
    dims: Sequence[Dim],
    scales: Mapping[str, list[Scale]],
    owed_splits: Mapping[str, list[Split]],
    paid: set[tuple[str, int]],
) -> TensorLift | None:
    canonical = program.tied.get(name, name)
    if not any(widening.grows(dim) for dim in dims) and canonical not in scales:
        return None
    splits: list[Split] = []
    for position, dim in enumerate(dims):
        growing = widening.grows(dim)
        if not growing or (canonical, position) in paid:
            continue
        sides = widening.table.sides.get((canonical, position), {})
        consumed = {a for a in growing if sides.get(a) == {"consumer"} and a not in widening.paddings}
        if not consumed:
            continue
        partial = consumed != set(growing)
        splits.append(Split(position, over=widening.index_map(dim, consumed) if partial else None))
    factors, fills = widening.padded(canonical, tuple(dims))
    maps = tuple(widening.index_map(dim) if widening.grows(dim) else None for dim in dims)
    return TensorLift(
        name=name,
        source=name,
        dims=maps,
        splits=(*splits, *owed_splits.get(canonical, ())),
        scales=(*scales.get(canonical, ()), *factors),
        init="random" if widening.init == "random" else "copy",
        fills=tuple(fills),
    )


def _obstacles(widening: Widening) -> list[str]:
    """Operations for which this growth is not exact."""
    found = []
    for event in widening.table.events:
        growing = _unpadded(widening, event.dim)
        if not growing or widening.init == "random":
            continue
        if event.kind in DECIDING:
            text = _obstacle(widening, event, growing)
            if text:
                found.append(text)
    return found if widening.init == "random" else found + _repeated(widening)


def _repeated(widening: Widening) -> list[str]:
    """Contractions over more copies than the tensor can serve, because it is itself repeated along a growing dim."""
    found = []
    for use in widening.table.uses:
        growing = _unpadded(widening, use.part) if use.role == "consume" else []
        held = [atom for dim in widening.table.tensor_dims[use.name] for atom in widening.grows(dim)] if growing else []
        for atom in dict.fromkeys(growing):
            if growing.count(atom) > held.count(atom):
                axis = widening.table.axis_of(atom)
                name = axis.name if axis is not None else use.name
                found.append(f"{name}: copies add up at {use.node}, and {use.name} is repeated along it")
    return found


def _unpadded(widening: Widening, dim: Dim) -> list[Atom]:
    """The growing atoms of a dim that are not padded; padding is proved separately."""
    return [atom for atom in widening.grows(dim) if atom not in widening.paddings]


def _obstacle(widening: Widening, event: Event, growing: list[Atom]) -> str:
    table = widening.table
    axes = ", ".join(axis.name for atom in dict.fromkeys(growing) if (axis := table.axis_of(atom)) is not None)
    if any(widening.kind[atom] == "free" for atom in growing):
        return f"{axes}: {event.op} at {event.node} does not ignore new units"
    if event.kind == "copies":
        return ""
    if event.kind == "groups":
        # The number of groups stays, so every copy must be next to its source along the whole dim.
        new, old = widening.size(event.dim), D.size_of(event.dim)
        beside = torch.arange(new) * old // new
        if new % old or not torch.equal(widening.index_map(event.dim).index(), beside):
            return (
                f"{axes}: {event.op} at {event.node} groups channels across two parts of a concatenation; all "
                "parts need the same integer factor"
            )
        return ""
    if event.kind == "normalise" and not widening.index_map(event.dim, set(growing)).uniform:
        atom = next((a for a in growing if widening.new[a] % a.size), None)
        if atom is None:
            return f"{axes}: {event.op} at {event.node} runs over parts of one dim that grow by different factors"
        lower = widening.new[atom] // atom.size * atom.size
        why = f"; padding is not exact, because {widening.unpadded[atom]}" if atom in widening.unpadded else ""
        return (
            f"{axes}: {atom.size} to {widening.new[atom]} is not an integer factor, and {event.op} at "
            f"{event.node} takes statistics over it{why}; the nearest exact sizes are {lower} and "
            f"{lower + atom.size}"
        )
    return ""


def _debts(widening: Widening) -> list[Debt]:
    """Contractions that no parameter absorbs: those of two activations, or with a tied tensor."""
    table = widening.table
    tied = conflicts(table)
    debts: dict[tuple[str, int, tuple[Atom, ...]], Debt] = {}

    def owe(key: tuple[str, int, tuple[Atom, ...]], debt: Debt) -> None:
        known = debts.get(key)
        debts[key] = debt if known is None else known.merged(debt)

    count: dict[tuple[str, str], int] = {}
    for event in table.events:
        growing = tuple(dict.fromkeys(_unpadded(widening, event.dim)))
        if event.kind == "contract" and growing:
            # The k-th contraction of these axes is the same op in both graphs.
            ordinal = count[event.mode, str(growing)] = count.get((event.mode, str(growing)), 0) + 1
            operands = {event.mode: event.operands}
            owe((event.op, ordinal, growing), Debt(growing, event.dim, operands, {event.mode: event.node}, event.root))
    for use in table.uses:
        growing = tuple(dict.fromkeys(_unpadded(widening, use.part)))
        if use.role == "consume" and any(use.name in tied.get(atom, ()) for atom in growing):
            assert use.operand is not None
            ordinal = count[use.mode, use.name] = count.get((use.mode, use.name), 0) + 1
            operands = {use.mode: (use.operand,)}
            debt = Debt(growing, use.part, operands, {use.mode: use.node}, False, use.name, use.dim)
            owe((use.name, ordinal, growing), debt)
    return list(debts.values())
