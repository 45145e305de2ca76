"""The factors that a width growth put into parameters, read back from its lift, with the contraction that owed each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom
from progc.analysis.axes.records import Event
from progc.ir.notation import module_path
from progc.ir.program import Mode, Program
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift
from progc.transforms.width.widening import conflicts


@dataclasses.dataclass(frozen=True)
class Factor:
    """Entries of a tensor that are multiplied so that a sum over copies stays what it was.

    Attributes:
        tensor, dim: where.
        entries: which of the old entries along the dim take it: `0 to 191 of 576`, `12 of 36`, or `all`.
        factor: what one entry is multiplied by, on average where copies take unequal shares (`shared`).
        because: the contraction that owes it.
    """

    tensor: str
    dim: int
    factor: float
    entries: str
    shared: bool
    because: str


class Factors:
    """Everything in a lift that is a factor and not a consumer's share.

    A lift does not say what a factor is for. It belongs to the axis that its dim holds, and there to the contraction
    that is nearest in the module tree; a factor on a dim without such an axis (a temperature) is listed for every
    axis that owes and has none of its own.
    """

    def __init__(self, program: Program, nodes: Mapping[tuple[Mode, str], fx.Node], lift: Lift) -> None:
        self._program, self._nodes = program, nodes
        self._tied = conflicts(axes_of(program))
        owing = {a for event in axes_of(program).events if event.kind == "contract" for a in D.leaves(event.dim)}
        owing.update(self._tied)
        self._found: list[tuple[TensorLift, int, set[Atom]]] = []
        for entry in lift.tensors:
            if entry.name in program.tied:
                continue
            for dim in sorted({scale.dim for scale in entry.scales} | self._makers(entry)):
                dims = axes_of(program).tensor_dims.get(entry.name, ())
                held = set(D.leaves(dims[dim])) if dim < len(dims) else set()
                self._found.append((entry, dim, held & owing))

    def of(self, atom: Atom, events: Sequence[Event]) -> tuple[Factor, ...]:
        """Factors for the sums over one axis; `events` are those of the axis."""
        owing = self._owing(atom, events)
        if not owing:
            return ()
        own = [(entry, dim) for entry, dim, held in self._found if atom in held]
        other = [(entry, dim) for entry, dim, held in self._found if not held]
        return tuple(self._factor(entry, dim, _nearest(owing, entry.name)) for entry, dim in own or other)

    def _makers(self, entry: TensorLift) -> set[int]:
        """Dims whose entries share although the tensor does not sum over them: they make an operand of a sum."""
        found = set()
        for split in entry.splits:
            sides = axes_of(self._program).sides.get((entry.name, split.dim), {})
            if sides and not any(roles == {"consumer"} for roles in sides.values()):
                found.add(split.dim)
        return found

    def _factor(self, entry: TensorLift, dim: int, because: str) -> Factor:
        shape = self._program.tensors[entry.name].shape
        value, on = 1.0, [True] * (shape[dim] if dim < len(shape) else 1)
        for scale in entry.scales:
            if scale.dim == dim:
                value *= next((v for v in scale.values if v != 1.0), 1.0)
                on = [v != 1.0 for v in scale.values]
        shared = dim in self._makers(entry)
        if shared:
            split = next(split for split in entry.splits if split.dim == dim)
            over = split.over or entry.dims[dim]
            assert over is not None
            value *= over.old / over.new
            on = list(split.where) if split.where is not None else on
        return Factor(entry.name, dim, value, _entries(on), shared, because)

    def _owing(self, atom: Atom, events: Sequence[Event]) -> list[tuple[str, str]]:
        """Module path and words of each sum over the axis that no weight of its own absorbs."""
        found = []
        for event in events:
            if event.kind == "contract":
                where = module_path(self._nodes[event.mode, event.node])
                root = ", and divides by the root of its size itself" if event.root else ""
                found.append((where, f"{event.op} in {where or 'the network'} sums over all copies{root}"))
        for tensor in sorted(self._tied.get(atom, ())):
            found.append((tensor, f"{tensor} makes the axis and sums over it, so it cannot share"))
        return list(dict.fromkeys(found))


def _entries(on: Sequence[bool]) -> str:
    if all(on):
        return "all"
    chosen = [i for i, flag in enumerate(on) if flag]
    together = chosen == list(range(chosen[0], chosen[0] + len(chosen)))
    return (f"{chosen[0]} to {chosen[-1]}" if together else f"{len(chosen)}") + f" of {len(on)}"


def _nearest(owing: list[tuple[str, str]], tensor: str) -> str:
    def common(path: str) -> int:
        a, b = path.split("."), tensor.split(".")
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return max(owing, key=lambda item: common(item[0]))[1]
