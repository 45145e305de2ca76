"""The table of axes: the results of the walk, resolved and named."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

from progc.analysis.axes import dims as D
from progc.analysis.axes import rules as _rules  # noqa: F401  importing the package registers the rules
from progc.analysis.axes.context import Context
from progc.analysis.axes.dims import Atom, Dim
from progc.analysis.axes.records import Event, Literal, Use
from progc.analysis.axes.walk import AxisWalk
from progc.files.text import aligned
from progc.ir.program import Mode, Program

# Meanings of an axis, the most specific first, with the suffix of its name.
_MEANINGS = {
    "head dim": "head_dim",
    "channel multiplier": "multiplier",
    "norm groups": "norm_groups",
    "conv groups": "conv_groups",
    "heads": "heads",
    "residual": "",
}


@dataclasses.dataclass(frozen=True)
class Span:
    """One tensor dim that belongs to an axis. `sides` holds `producer`, `consumer`, or both."""

    tensor: str
    dim: int
    sides: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of the program.

    Attributes:
        name: the module that first produces it, with a suffix such as `heads`.
        size: number of units at the captured size.
        meaning: residual width, heads, head dim, hidden width, conv channels, norm groups, conv groups,
            channel multiplier, extent (of tokens, space, batch, input features).
        growable: True if nothing forbids growth.
        reason: why it may not grow; empty if growable.
        spans: the tensor dims that belong to it.
        conditions: what exact growth requires, in words.
    """

    name: str
    size: int
    meaning: str
    growable: bool
    reason: str
    spans: tuple[Span, ...]
    conditions: tuple[str, ...]
    atom: Atom

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "size": self.size,
            "meaning": self.meaning,
            "growable": self.growable,
            "reason": self.reason,
            "conditions": list(self.conditions),
            "spans": [{"tensor": s.tensor, "dim": s.dim, "sides": list(s.sides)} for s in self.spans],
        }


class AxisTable:
    """All axes of a program, and what the passes need to grow them.

    Attributes:
        program: what was analysed.
        axes: growable and pinned axes of at least one parameter, in order of first use.
        tensor_dims: tensor name to its factored dims (tied names too).
        events, uses, literals: what the walk recorded, with dims resolved.
        unknown: ops without a rule that touched channel axes, with counts.
    """

    def __init__(self, program: Program, context: Context) -> None:
        self.program = program
        self.tensor_dims = {name: tuple(D.resolve(dim) for dim in dims) for name, dims in context.tensor_dims.items()}
        for alias, canonical in program.tied.items():
            if canonical in self.tensor_dims:
                self.tensor_dims[alias] = self.tensor_dims[canonical]
        self.events: list[Event] = context.events
        self.uses: list[Use] = context.uses
        self.literals: list[Literal] = context.literals
        self.unknown = context.unknown
        self.values: dict[tuple[Mode, str], Any] = context.value_dims
        self.sides = self._find_sides()
        self.axes = self._name_axes()
        self._by_atom = {axis.atom: axis for axis in self.axes}

    def __getitem__(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise KeyError(name)

    def axis_of(self, atom: Atom) -> Axis | None:
        """Returns the axis of a resolved atom, or None if it belongs to no parameter."""
        return self._by_atom.get(atom)

    @property
    def growable(self) -> tuple[Axis, ...]:
        """The axes that may grow."""
        return tuple(axis for axis in self.axes if axis.growable)

    def coverage(self) -> float:
        """Returns the share of the parameters, in [0, 1], that lie on at least one growable axis."""
        on = {span.tensor for axis in self.growable for span in axis.spans}
        total = self.program.num_parameters()
        return sum(tensor.numel() for name, tensor in self.program.parameters() if name in on) / max(total, 1)

    def show(self, dim: Dim) -> str:
        """Formats a factored dim: `3 * blocks.0.attn.qkv.heads * 64`."""
        parts = []
        for atom in D.resolve(dim):
            if atom.segments is not None:
                parts.append("[" + ", ".join(self.show(segment) for segment in atom.segments) + "]")
            else:
                axis = self._by_atom.get(atom)
                parts.append(axis.name if axis is not None else str(atom.size))
        return " * ".join(parts) or "1"

    def to_json(self) -> dict[str, Any]:
        """Returns plain data: axes, ops without a rule, coverage."""
        return {
            "axes": [axis.to_json() for axis in self.axes],
            "unknown_ops": dict(self.unknown),
            "coverage": self.coverage(),
        }

    def __str__(self) -> str:
        rows = [("axis", "size", "meaning", "grows", "tensors", "condition or reason")]
        for axis in self.axes:
            note = axis.reason if not axis.growable else "; ".join(axis.conditions)
            grows = "yes" if axis.growable else "no"
            rows.append((axis.name, str(axis.size), axis.meaning, grows, str(len(axis.spans)), note))
        grown = f"{len(self.growable)} of {len(self.axes)} axes grow; {self.coverage():.1%} of the parameters"
        return f"{aligned(rows)}\n{grown}"

    # -- finding ----------------------------------------------------------------------------------------

    def _find_sides(self) -> dict[tuple[str, int], dict[Atom, set[str]]]:
        """Maps (tensor, dim) to atoms to the roles that they have there."""
        sides: dict[tuple[str, int], dict[Atom, set[str]]] = defaultdict(lambda: defaultdict(set))
        for use in self.uses:
            role = "consumer" if use.role == "consume" else "producer"
            for atom in D.leaves(use.part):
                if not atom.extent:
                    sides[use.name, use.dim][atom].add(role)
        return sides

    def _name_axes(self) -> tuple[Axis, ...]:
        spans: dict[Atom, dict[tuple[str, int], None]] = defaultdict(dict)
        parameters: set[Atom] = set()
        for name, dims in self.tensor_dims.items():
            if name in self.program.tied:
                continue
            for position, dim in enumerate(dims):
                for atom in D.leaves(dim):
                    spans[atom].setdefault((name, position))
                    if self.program.specs[name].kind == "parameter":
                        parameters.add(atom)
        kinds: dict[Atom, dict[str, None]] = defaultdict(dict)
        conditions: dict[Atom, dict[str, None]] = defaultdict(dict)
        for event in self.events:
            for atom in D.leaves(event.dim):
                kinds[atom].setdefault(event.kind)
                text = condition_of(event)
                if text:
                    conditions[atom].setdefault(text)
        producers = self._producers()
        taken: dict[str, int] = {}
        axes = []
        for atom in spans:
            if atom not in parameters:
                continue
            made_by = producers.get(atom, {})
            if len(made_by) < 2:
                kinds[atom].pop("residual", None)  # a layer's output added to itself (tanh-GELU) is not a stream
            meaning, suffix = _meaning(atom, kinds[atom], [len(self.tensor_dims[t]) for t, _ in spans[atom]])
            stem = next(iter(made_by), None) or next(iter(spans[atom]))[0]
            base = stem.rpartition(".")[0] or stem
            name = base + ("." + suffix if suffix else "")
            taken[name] = taken.get(name, 0) + 1
            if taken[name] > 1:
                name = f"{name}.{taken[name]}"
            axes.append(
                Axis(
                    name=name,
                    size=atom.size,
                    meaning=meaning,
                    growable=not atom.reasons and not atom.extent,
                    reason="; ".join(atom.reasons) or (D.POSITIONS if atom.extent else ""),
                    spans=tuple(self._span(atom, *where) for where in spans[atom]),
                    conditions=tuple(conditions[atom]),
                    atom=atom,
                )
            )
        return tuple(axes)

    def _producers(self) -> dict[Atom, dict[str, None]]:
        """Maps each axis to the matrices and tables that produce it; it is named after the first."""
        found: dict[Atom, dict[str, None]] = defaultdict(dict)
        for use in self.uses:
            if use.role != "consume" and len(self.tensor_dims[use.name]) > 1:
                for atom in D.leaves(use.part):
                    found[atom].setdefault(use.name)
        return found

    def _span(self, atom: Atom, tensor: str, dim: int) -> Span:
        return Span(tensor, dim, tuple(sorted(self.sides.get((tensor, dim), {}).get(atom, set()))))


def _meaning(atom: Atom, kinds: dict[str, None], ranks: list[int]) -> tuple[str, str]:
    if atom.extent:
        return "extent", "extent"
    for kind, suffix in _MEANINGS.items():
        if kind in kinds:
            return ("residual width" if kind == "residual" else kind), suffix
    return ("conv channels", "") if any(rank > 2 for rank in ranks) else ("hidden width", "")


def condition_of(event: Event) -> str:
    """Returns what exact growth requires because of an event, in words; empty if nothing."""
    if event.kind == "normalise":
        return f"integer factors, or padding where that is exact ({event.op} takes statistics over it)"
    if event.kind == "groups":
        return f"one integer factor for all parts ({event.op} has groups that span several parts)"
    if event.kind == "contract":
        return f"a factor on one operand ({event.op})"
    if event.kind == "copies":
        return f"copies only ({event.op})"
    return ""


def axes_of(program: Program) -> AxisTable:
    """Returns the axes of a program, inferred from both of its graphs and computed once per program."""
    table: AxisTable = program.memo("axes", analyse)
    return table


def analyse(program: Program) -> AxisTable:
    """Infers the axes of a program; `axes_of` caches the result."""
    context = AxisWalk(program)
    context.run()
    return AxisTable(program, context)
