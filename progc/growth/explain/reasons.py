"""Collects the reasons why a growth is exact or not, axis by axis.

For each axis: which tensors produce it, which ones absorb it, what each norm and contraction requires, and which
factors the width growth put into parameters. Nothing is decided here. Every statement is read from the table of axes
(uses, sides, events, pins), the width plan (kinds, obstacles) and the lift (shares, factors).
`progc/growth/explain/text.py` prints the result.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from progc.analysis.axes import Axis, axes_of
from progc.analysis.axes import dims as D
from progc.analysis.axes.dims import Atom
from progc.analysis.axes.records import DECIDING, Event, Use
from progc.analysis.axes.table import condition_of as condition_of
from progc.capturing.refusals import place_of_trace
from progc.errors import InputError, did_you_mean
from progc.ir.notation import module_path, target_text
from progc.ir.program import Mode, Program
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift
from progc.transforms.width.widening import AxisGrowth, conflicts


@dataclasses.dataclass(frozen=True)
class ReasonPlace:
    """An operation: its name, its node, the module that calls it, and the user's `file:line` ("" if unknown)."""

    op: str
    node: str
    module: str
    line: str


@dataclasses.dataclass(frozen=True)
class AxisSide:
    """A tensor dim that produces an axis, extends along it (`along`) or sums over it, and what growth does there."""

    tensor: str
    dim: int
    how: str
    along: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"tensor": self.tensor, "dim": self.dim, "how": self.how}


@dataclasses.dataclass(frozen=True)
class Norm:
    """An operation that limits how the axis may grow; `holds` is None if nothing grows."""

    place: ReasonPlace
    condition: str
    holds: bool | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {**dataclasses.asdict(self.place), "condition": self.condition, "holds": self.holds}


@dataclasses.dataclass(frozen=True)
class Pin:
    """A reason why an axis cannot grow, and the operation that causes it."""

    reason: str
    place: ReasonPlace | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """One axis of a growth.

    Attributes:
        axis, meaning, old, new: as in the table; `new` equals `old` for an axis that stays.
        kind: what new units are (`copy`, `free`, `random`, ...), `pinned`, or `stays`.
        why: the reason for this kind, if there was a choice.
        producers, consumers: tensor dims on both sides.
        norms: conditions of the operations that the axis passes through.
        contractions: where two activations are multiplied and summed over the axis.
        factors: factors that keep these sums unchanged.
        sizes: number of arguments in the eval graph that hold its size and change with it.
        pins: why it cannot grow.
        obstacle: why this growth is refused or not exact; None if it is exact.
        obstacle_at: the operation that the obstacle names, if any.
    """

    axis: str
    meaning: str
    old: int
    new: int
    kind: str
    why: str = ""
    producers: tuple[AxisSide, ...] = ()
    consumers: tuple[AxisSide, ...] = ()
    norms: tuple[Norm, ...] = ()
    contractions: tuple[Norm, ...] = ()
    factors: tuple[Factor, ...] = ()
    sizes: int = 0
    pins: tuple[Pin, ...] = ()
    obstacle: str | None = None
    obstacle_at: ReasonPlace | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data: the entry of `axes` in report.json."""
        return {
            "axis": self.axis,
            "meaning": self.meaning,
            "old": self.old,
            "new": self.new,
            "kind": self.kind,
            "why": self.why,
            "producers": [side.to_json() for side in self.producers],
            "consumers": [side.to_json() for side in self.consumers],
            "norms": [norm.to_json() for norm in self.norms],
            "contractions": [norm.to_json() for norm in self.contractions],
            "factors": [dataclasses.asdict(factor) for factor in self.factors],
            "sizes": self.sizes,
            "pins": [{"reason": p.reason, **(dataclasses.asdict(p.place) if p.place else {})} for p in self.pins],
            "obstacle": self.obstacle,
        }


def explain(
    program: Program,
    growths: Sequence[AxisGrowth] = (),
    lift: Lift | None = None,
    obstacles: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> tuple[Explanation, ...]:
    """Explains what the analysis of `program` and a width growth of it say about axes.

    Args:
        program: the program *before* it is widened.
        growths, lift, obstacles: from the width plan; omit all of them to explain the axes alone.
        names: names of the axes; None: all.
    """
    reader = _Reader(program, growths, lift, obstacles)
    wanted = None if names is None else set(names)
    return tuple(reader.axis(axis) for axis in axes_of(program).axes if wanted is None or axis.name in wanted)


def axis_names(program: Program, pattern: str) -> list[str]:
    """Returns the axes whose name equals or matches `pattern` (`blocks.*.heads`).

    Raises:
        InputError: there is none; the message names the nearest.
    """
    names = [axis.name for axis in axes_of(program).axes]
    found = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise InputError(
            f"no axis is called `{pattern}`{did_you_mean(pattern, names)}; progc inspect --axes lists them, `all` "
            "takes every one"
        )
    return found


class _Reader:
    def __init__(
        self, program: Program, growths: Sequence[AxisGrowth], lift: Lift | None, obstacles: Sequence[str]
    ) -> None:
        self.program, self.table, self.obstacles = program, axes_of(program), obstacles
        self.growths = {growth.axis: growth for growth in growths}
        self.entries: dict[str, TensorLift] = {entry.name: entry for entry in lift.tensors} if lift is not None else {}
        self.nodes: dict[tuple[Mode, str], fx.Node] = {
            (mode, node.name): node for mode, graph in program.graphs.items() for node in graph.nodes
        }
        self.factors = Factors(program, self.nodes, lift) if lift is not None else None
        self.names = {axis.name for axis in self.table.axes}
        self.events = _by_atom((event, event.dim) for event in self.table.events)
        self.uses = _by_atom((use, use.part) for use in self.table.uses)
        self.sizes: dict[Atom, int] = {}
        for literal in self.table.literals:
            if literal.mode == "eval":
                for atom in dict.fromkeys(atom for part in literal.parts for atom in D.leaves(part)):
                    self.sizes[atom] = self.sizes.get(atom, 0) + 1

    def axis(self, axis: Axis) -> Explanation:
        growth = self.growths.get(axis.name)
        pins = tuple(Pin(reason, self._place(place)) for reason, place in axis.atom.reasons.items())
        if pins:
            reason = "; ".join(pin.reason for pin in pins)
            return Explanation(axis.name, axis.meaning, axis.size, axis.size, "pinned", pins=pins, obstacle=reason)
        obstacle = self._obstacle(axis.name) if growth is not None else None
        events = self.events.get(axis.atom, ())
        return Explanation(
            axis=axis.name,
            meaning=axis.meaning,
            old=axis.size,
            new=growth.new if growth else axis.size,
            kind=growth.kind if growth else "stays",
            why=growth.why if growth else "",
            producers=tuple(self._producers(axis, growth)),
            consumers=tuple(self._consumers(axis, growth)),
            norms=self._norms(axis.atom, growth, ("normalise", "groups", "copies")),
            contractions=self._norms(axis.atom, growth, ("contract",)),
            factors=self.factors.of(axis.atom, events) if growth and self.factors else (),
            sizes=self.sizes.get(axis.atom, 0),
            obstacle=obstacle,
            obstacle_at=self._named_place(obstacle),
        )

    # -- tensors ------------------------------------------------------------------------------------------

    def _producers(self, axis: Axis, growth: AxisGrowth | None) -> Iterator[AxisSide]:
        places = dict.fromkeys((use.name, use.dim) for use in self.uses.get(axis.atom, ()) if use.role == "carry")
        for tensor, dim in places:
            yield AxisSide(tensor, dim, self._made(tensor, dim, growth), along=len(self.table.tensor_dims[tensor]) < 2)

    def _made(self, tensor: str, dim: int, growth: AxisGrowth | None) -> str:
        entry = self.entries.get(tensor)
        if growth is None or entry is None or not entry.dims:
            return "" if growth is None else "unchanged"
        index_map = entry.dims[dim]
        if entry.fill is not None:
            return f"holds {entry.fill:g} everywhere"
        if growth.kind == "pad":
            return self._padded(entry, dim)
        if growth.kind not in ("copy", "free", "random"):
            return f"new entries as for {growth.kind}"
        if index_map is None or not bool(index_map.fresh().any()):
            return "new entries repeat old ones"
        return "new entries are drawn at random" if len(entry.dims) > 1 else "new entries repeat old ones"

    def _padded(self, entry: TensorLift, dim: int) -> str:
        """Describes a padded dim of a producer, gain or shift, from the fills and factors of its lift."""
        said = {fill.how: fill for fill in entry.fills if fill.dim == dim}
        texts = {
            "zero": "new entries are zero",
            "one": "new entries are one",
            "mean": "new entries are the mean of old ones",
        }
        found = [text for how, text in texts.items() if how in said] or ["new entries repeat old ones"]
        if any(fill.weights for fill in said.values()):
            found.append("weighted by " + ", ".join(name for fill in said.values() for name in fill.weights))
        return "; ".join(found + self._times(entry))

    def _times(self, entry: TensorLift) -> list[str]:
        factors = {value for scale in entry.scales for value in scale.values if value != 1.0}
        return [f"old ones multiplied by {value:.4g}" for value in sorted(factors)[:2]]

    def _consumers(self, axis: Axis, growth: AxisGrowth | None) -> Iterator[AxisSide]:
        places = dict.fromkeys((use.name, use.dim) for use in self.uses.get(axis.atom, ()) if use.role == "consume")
        for tensor, dim in places:
            yield AxisSide(tensor, dim, self._absorbed(axis.atom, tensor, dim, growth))

    def _absorbed(self, atom: Atom, tensor: str, dim: int, growth: AxisGrowth | None) -> str:
        entry = self.entries.get(tensor)
        if growth is None or entry is None:
            return "sums over it"
        if entry.init == "random":
            return "new weights are drawn at random: the sum changes"
        if growth.kind == "pad":
            zero = any(fill.dim == dim and fill.how == "zero" for fill in entry.fills)
            new = "weights of new units are zero" if zero else "new units are zero, their weights are drawn at random"
            return "; ".join([new, *self._times(entry)])
        if growth.kind not in ("copy", "free", "random"):
            return f"absorbs it as for {growth.kind}"
        if not any(split.dim == dim for split in entry.splits):
            both = len(self.table.sides.get((tensor, dim), {}).get(atom, ())) > 1
            return "cannot divide its weights: it also makes the axis" if both else "does not divide its weights"
        if growth.kind == "free":
            return "weights of new units are zero: it ignores them"
        return "each weight is divided among the copies, and its parts add up to it"

    # -- operations ---------------------------------------------------------------------------------------

    def _norms(self, atom: Atom, growth: AxisGrowth | None, kinds: tuple[str, ...]) -> tuple[Norm, ...]:
        found: dict[tuple[str, str, str], Norm] = {}
        events = [event for event in self.events.get(atom, ()) if event.kind in kinds]
        for event in sorted(events, key=lambda event: event.mode != "eval"):
            place = self._place((event.mode, event.node))
            assert place is not None and event.kind in DECIDING
            if event.mode != "eval" and any(key[:2] == (place.op, place.module) for key in found):
                continue  # the same operation, seen in the train graph
            holds = None if growth is None else not any(_names_node(text, event.node) for text in self.obstacles)
            found.setdefault((place.op, place.module, event.node), Norm(place, condition_of(event), holds))
        return tuple(found.values())

    def _obstacle(self, name: str) -> str | None:
        """The first obstacle that begins with the name of this axis, or names no axis."""
        for text in self.obstacles:
            head = text.partition(": ")[0].split(", ")
            if name in head or not any(item in self.names for item in head):
                return text
        return None

    def _named_place(self, text: str | None) -> ReasonPlace | None:
        """The operation that an obstacle names."""
        for node in re.findall(r"\bat (\w+)\b", text or ""):
            for mode in ("eval", "train"):
                if (mode, node) in self.nodes:
                    return self._place((mode, node))
        return None

    def _place(self, place: tuple[Any, str] | None) -> ReasonPlace | None:
        node = self.nodes.get(place) if place is not None else None
        if node is None or node.op == "output":
            return None
        line = place_of_trace(node.meta.get("stack_trace"))
        op = "" if node.op in ("placeholder", "get_attr") else target_text(node.target)
        where = str(line).rpartition("site-packages/")[2] if line else ""  # a library's file by its own path
        return ReasonPlace(op.rpartition(".")[0] or op, node.name, module_path(node), where)


def _names_node(text: str, node: str) -> bool:
    return re.search(rf"\bat {re.escape(node)}\b", text) is not None


def _by_atom(items: Iterable[tuple[Any, D.Dim]]) -> Mapping[Atom, list[Any]]:
    found: dict[Atom, list[Event | Use]] = {}
    for item, dim in items:
        for atom in dict.fromkeys(D.leaves(dim)):
            if not atom.extent:
                found.setdefault(atom, []).append(item)
    return found


@dataclasses.dataclass(frozen=True)
class Factor:
    """Entries of a tensor that are multiplied so that a sum over copies does not change.

    Attributes:
        tensor, dim: the tensor and its dim.
        entries: which old entries along the dim are multiplied: `0 to 191 of 576`, `12 of 36`, or `all`.
        factor: the factor of an entry, or the average factor if copies have unequal shares (`shared`).
        because: the contraction that requires it.
    """

    tensor: str
    dim: int
    factor: float
    entries: str
    shared: bool
    because: str


class Factors:
    """All factors in a lift except the shares of consumers.

    A lift does not record what a factor is for. A factor belongs to the axis of its dim, and there to the contraction
    that is nearest in the module tree. A factor on a dim without such an axis (a temperature) is listed for every axis
    that needs a factor and has none of its own.
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
        """Returns the factors for the sums over one axis; `events` are those of the axis."""
        owing = self._owing(atom, events)
        if not owing:
            return ()
        own = [(entry, dim) for entry, dim, held in self._found if atom in held]
        other = [(entry, dim) for entry, dim, held in self._found if not held]
        return tuple(self._factor(entry, dim, _nearest(owing, entry.name)) for entry, dim in own or other)

    def _makers(self, entry: TensorLift) -> set[int]:
        """Dims with shared entries that the tensor does not sum over: they produce an operand of a sum."""
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
        """Module path and description of each sum over the axis that no weight absorbs."""
        found = []
        for event in events:
            if event.kind == "contract":
                where = module_path(self._nodes[event.mode, event.node])
                root = " and divides by the square root of its size" if event.root else ""
                found.append((where, f"{event.op} in {where or 'the network'} sums over all copies{root}"))
        for tensor in sorted(self._tied.get(atom, ())):
            found.append((tensor, f"{tensor} makes the axis and sums over it, so it cannot divide its weights"))
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
