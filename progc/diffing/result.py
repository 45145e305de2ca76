"""What a comparison of two programs answers with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.diffing.facts import Facts

OTHER_SHAPES = ("added", "removed", "reshaped")


@dataclasses.dataclass(frozen=True)
class Form:
    """Dtype and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class TensorGroup:
    """Tensors to which the same happened.

    Attributes:
        pattern: their names as one: `blocks.{0-11}.attn.qkv.weight`.
        names: the names that it stands for.
        before, after: dtype and shape; None on the side that has no such tensors.
        max_abs_diff: largest absolute difference of values, in float64; None where forms differ. inf where one side is
            not finite.
    """

    pattern: str
    names: tuple[str, ...]
    before: Form | None
    after: Form | None
    max_abs_diff: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; names are left to the pattern, which stands for them exactly."""
        forms = {key: None if form is None else dataclasses.asdict(form)
                 for key, form in (("before", self.before), ("after", self.after))}  # fmt: skip
        data: dict[str, Any] = {"pattern": self.pattern, "tensors": len(self.names), **forms}
        if self.before == self.after:
            data["max_abs_diff"] = self.max_abs_diff
        return data


@dataclasses.dataclass(frozen=True)
class SizeChange:
    """Axes or chains that went from one size to another; None where there was none, or is none any more."""

    pattern: str
    names: tuple[str, ...]
    before: int | None
    after: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"pattern": self.pattern, "count": len(self.names), "before": self.before, "after": self.after}


@dataclasses.dataclass(frozen=True)
class ProgramDiff:
    """What changed from one program to another. `str()` is for people, `to_json()` for programs.

    Attributes:
        names: what the two are called.
        before, after: what is known of each.
        chains, axes: those whose depth or size differs; None where one side does not say.
        added, removed, reshaped: tensors; another dtype counts as another shape.
        changed: tensors of the same form with other values.
        equal: how many tensors are equal bit by bit.
        froze, thawed: patterns of parameters that are no longer trained, and of those that are trained again; None
            where one side does not say.
        tied, untied: aliases with their canonical names, new and gone.
        operations: per mode, number of calls before and after where they differ; None where one side does not say.
        graph: unified diff of the printed graphs, if asked for.
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
        """Largest absolute difference of values among tensors of the same form; 0.0 if there is none."""
        return max((group.max_abs_diff or 0.0 for group in self.changed), default=0.0)

    @property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """Per side that does not say all, which facts it leaves out."""
        found = {}
        for name, facts in zip(self.names, (self.before, self.after), strict=True):
            missing = tuple(field.name for field in dataclasses.fields(facts) if getattr(facts, field.name) is None)
            if missing:
                found[name] = missing
        return found

    @property
    def same(self) -> bool:
        """Whether nothing differs, as far as both sides say; how they came about (name, passes) does not count."""
        here, there = (dataclasses.replace(facts, class_name=None, history=None) for facts in (self.before, self.after))
        facts = (
            getattr(here, field.name) in (None, getattr(there, field.name)) or getattr(there, field.name) is None
            for field in dataclasses.fields(Facts)
        )
        return all(facts) and not (self.added or self.removed or self.reshaped or self.changed)

    def count(self, kind: str) -> int:
        """Number of tensors that were `added`, `removed`, `reshaped` or `changed`."""
        return sum(len(group.names) for group in getattr(self, kind))

    def to_json(self) -> dict[str, Any]:
        """One JSON object; the facts of both sides are in it too. Infinite differences become null in JSON text."""
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
        from progc.diffing.text import text_of

        return text_of(self)


def _listed(changes: tuple[SizeChange, ...] | None) -> list[dict[str, Any]] | None:
    return None if changes is None else [change.to_json() for change in changes]


def _list(items: tuple[str, ...] | None) -> list[str] | None:
    return None if items is None else list(items)
