"""The result of a comparison of two programs, as data, JSON and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from progc.diffing.facts import Facts, Port
from progc.files.text import aligned

OTHER_SHAPES = ("added", "removed", "reshaped")

Rows = Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class ChangeForm:
    """Dtype and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class TensorGroup:
    """Tensors with the same change.

    Attributes:
        pattern: their names as a pattern: `blocks.{0-11}.attn.qkv.weight`.
        names: the names.
        before, after: dtype and shape; None on a side without these tensors.
        max_abs_diff: largest absolute difference of values, in float64; None if dtype or shape differ, inf if a value
            that is not finite differs.
    """

    pattern: str
    names: tuple[str, ...]
    before: ChangeForm | None
    after: ChangeForm | None
    max_abs_diff: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; the pattern stands for the names."""
        forms = {key: None if form is None else dataclasses.asdict(form)
                 for key, form in (("before", self.before), ("after", self.after))}  # fmt: skip
        data: dict[str, Any] = {"pattern": self.pattern, "tensors": len(self.names), **forms}
        if self.before == self.after:
            data["max_abs_diff"] = self.max_abs_diff
        return data


@dataclasses.dataclass(frozen=True)
class SizeChange:
    """Axes or chains whose size changed; None on a side without them."""

    pattern: str
    names: tuple[str, ...]
    before: int | None
    after: int | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"pattern": self.pattern, "count": len(self.names), "before": self.before, "after": self.after}


@dataclasses.dataclass(frozen=True)
class ProgramDiff:
    """The differences between two programs. `str()` is for people, `to_json()` for programs.

    Attributes:
        names: names of both sides.
        before, after: facts of both sides.
        chains, axes: those whose depth or size differs; None if unknown on one side.
        added, removed, reshaped: tensors; a change of dtype counts as reshaped.
        changed: tensors of the same dtype and shape with other values.
        equal: number of tensors that are equal bit by bit.
        froze, thawed: patterns of parameters that no longer train, and of those that train again; None if unknown on
            one side.
        tied, untied: added and removed aliases, with their canonical names.
        operations: per mode, number of calls before and after, where they differ; None if unknown on one side.
        graph: unified diff of the printed graphs, if requested.
    """

    names: tuple[str, str]
    before: Facts
    after: Facts
    chains: tuple[SizeChange, ...] | None
    axes: tuple[SizeChange, ...] | None
    added: tuple[TensorGroup, ...]
    removed: tuple[TensorGroup, ...]
    reshaped: tuple[TensorGroup, ...]
    changed: tuple[TensorGroup, ...]
    equal: int
    froze: tuple[str, ...] | None
    thawed: tuple[str, ...] | None
    tied: Mapping[str, str] | None
    untied: Mapping[str, str] | None
    operations: Mapping[str, Mapping[str, tuple[int, int]]] | None
    graph: str | None = None

    @property
    def max_abs_diff(self) -> float:
        """The largest absolute difference of values between tensors of the same dtype and shape; 0.0 without one."""
        return max((group.max_abs_diff or 0.0 for group in self.changed), default=0.0)

    @property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """The unknown facts of each side that has some."""
        found = {}
        for name, facts in zip(self.names, (self.before, self.after), strict=True):
            missing = tuple(field.name for field in dataclasses.fields(facts) if getattr(facts, field.name) is None)
            if missing:
                found[name] = missing
        return found

    @property
    def same(self) -> bool:
        """Whether tensors and all facts known on both sides are equal; class and passes do not count."""
        here, there = (dataclasses.replace(facts, class_name=None, history=None) for facts in (self.before, self.after))
        facts = (
            getattr(here, field.name) in (None, getattr(there, field.name)) or getattr(there, field.name) is None
            for field in dataclasses.fields(Facts)
        )
        return all(facts) and not (self.added or self.removed or self.reshaped or self.changed)

    def count(self, kind: str) -> int:
        """Returns the number of tensors that were `added`, `removed`, `reshaped` or `changed`."""
        return sum(len(group.names) for group in getattr(self, kind))

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object, with the facts of both sides. Infinite differences become null in JSON text."""
        kinds = (*OTHER_SHAPES, "changed")
        data: dict[str, Any] = {
            "before": {"name": self.names[0], **self.before.to_json()},
            "after": {"name": self.names[1], **self.after.to_json()},
            "same": self.same,
            "chains": _listed(self.chains),
            "axes": _listed(self.axes),
            "tensors": {
                **{kind: self.count(kind) for kind in kinds},
                "equal": self.equal,
                "max_abs_diff": self.max_abs_diff,
                "groups": {kind: [group.to_json() for group in getattr(self, kind)] for kind in kinds},
            },
            "trainable": {"frozen": _list(self.froze), "unfrozen": _list(self.thawed)},
            "tied": {"added": self.tied, "removed": self.untied},
            "operations": self.operations,
            "unknown": {name: list(missing) for name, missing in self.unknown.items()},
        }
        if self.graph is not None:
            data["graph"] = self.graph
        return data

    def __str__(self) -> str:
        return text_of(self)


def _listed(changes: tuple[SizeChange, ...] | None) -> list[dict[str, Any]] | None:
    return None if changes is None else [change.to_json() for change in changes]


def _list(items: tuple[str, ...] | None) -> list[str] | None:
    return None if items is None else list(items)


def text_of(diff: ProgramDiff) -> str:
    """Returns the comparison as text, without a final newline."""
    parts = [aligned(list(_summary(diff)))]
    if diff.axes:
        parts.append(_part("axes", [(change.pattern, _sizes(change)) for change in diff.axes]))
    parts.append("\n".join(_tensors(diff)))
    trained = [("no longer trained", pattern) for pattern in diff.froze or ()]
    trained += [("trained again", pattern) for pattern in diff.thawed or ()]
    if trained:
        parts.append(_part("trainable set", trained))
    ties = [(f"{alias} is tied to {name}",) for alias, name in (diff.tied or {}).items()]
    ties += [(f"{alias} is no longer tied to {name}",) for alias, name in (diff.untied or {}).items()]
    if ties:
        parts.append(_part("ties", ties))
    parts += _operations(diff)
    if diff.graph:
        parts.append(diff.graph)
    parts += [f"unknown for {name}: {', '.join(missing)}" for name, missing in diff.unknown.items()]
    if diff.same:
        parts.append("no difference" if not diff.unknown else "no difference in what is known of both")
    return "\n\n".join(parts)


def _summary(diff: ProgramDiff) -> Iterator[tuple[str, str]]:
    old, new = diff.before, diff.after
    yield "before", diff.names[0]
    yield "after", diff.names[1]
    if old.history is not None and new.history is not None and (old.history or new.history):
        yield "passes", _arrow(", ".join(old.history) or "none", ", ".join(new.history) or "none")
    if old.params is not None and new.params is not None:
        more = f" ({new.params - old.params:+,})" if old.params != new.params else ""
        yield "parameters", _arrow(f"{old.params:,}", f"{new.params:,}") + more
    if old.frozen or new.frozen:
        yield "trained", _arrow(_trained(old), _trained(new))
    yield from _ports("input", old.inputs, new.inputs)
    yield from _ports("output", old.outputs, new.outputs)
    if old.chains and new.chains is not None:
        names = {**old.chains, **new.chains}
        depths = {name: (str(old.chains.get(name, "none")), str(new.chains.get(name, "none"))) for name in names}
        yield "chains", ", ".join(f"{name} {_arrow(*pair)}" for name, pair in depths.items())


def _trained(facts: Facts) -> str:
    return "not known" if facts.trainable is None else f"{facts.trainable:,}"


def _arrow(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"


def _ports(what: str, old: tuple[Port, ...] | None, new: tuple[Port, ...] | None) -> Iterator[tuple[str, str]]:
    """Inputs and outputs by name, with dtype and shape; `none` on a side without them."""
    if old is None or new is None:
        return
    before, after = ({port.name: str(port) for port in ports} for ports in (old, new))
    for name in {**before, **after}:
        yield f"{what} {name}", _arrow(before.get(name, "none"), after.get(name, "none"))


def _sizes(change: SizeChange) -> str:
    old, new = ("none" if size is None else str(size) for size in (change.before, change.after))
    return f"{old} -> {new}"


def _tensors(diff: ProgramDiff) -> Iterator[str]:
    counts = {kind: diff.count(kind) for kind in ("added", "removed", "reshaped", "changed")}
    parts = [f"{count} {'with other values' if kind == 'changed' else kind}" for kind, count in counts.items() if count]
    yield f"tensors: {', '.join([*parts, f'{diff.equal} equal bit by bit'])}"
    for kind in ("added", "removed", "reshaped"):
        if counts[kind]:
            yield f"  {kind}"
            yield aligned([(group.pattern, _forms(group)) for group in getattr(diff, kind)], indent="    ")
    if diff.changed:
        yield "  with other values, and their largest absolute difference"
        rows = [(group.pattern, _forms(group), f"{group.max_abs_diff:.1e}") for group in diff.changed]
        yield aligned(rows, indent="    ")


def _forms(group: TensorGroup) -> str:
    """Shapes alone where dtypes agree."""
    old, new = group.before, group.after
    if old is not None and new is not None and old.dtype != new.dtype:
        return f"{old} -> {new}"
    shapes = [str(list(form.shape)) for form in (old, new) if form is not None]
    return _arrow(shapes[0], shapes[-1])


def _operations(diff: ProgramDiff) -> Iterator[str]:
    found = diff.operations
    if found is None:
        return
    same = found["train"] == found["eval"]
    for mode in ("eval",) if same else ("train", "eval"):
        rows = [(name, f"{old} -> {new}", f"{new - old:+}") for name, (old, new) in found[mode].items()]
        if rows:
            yield _part(f"operations of {'both graphs' if same else f'the {mode} graph'}", rows)
    if not any(found.values()) and _differ(diff.before.graphs, diff.after.graphs) and not diff.graph:
        yield "graphs: the same operations with other arguments (for models, --graph shows the difference)"


def _differ(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> bool:
    return old is not None and new is not None and old != new


def _part(title: str, rows: Rows) -> str:
    return f"{title}\n{aligned(rows, indent='  ')}"
