"""A comparison as text for people: what is the same takes no line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from progc.diffing.facts import Facts, Port
from progc.diffing.result import ProgramDiff, SizeChange, TensorGroup

Rows = Sequence[tuple[str, ...]]


def text_of(diff: ProgramDiff) -> str:
    """The whole comparison, without a final newline."""
    parts = ["\n".join(_aligned(list(_summary(diff)), ""))]
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
    parts += [f"{name} does not say: {', '.join(missing)}" for name, missing in diff.unknown.items()]
    if diff.same:
        parts.append("no difference" if not diff.unknown else "no difference in what both say")
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
    """Inputs and outputs by name, with dtype and shape; one that is on one side only says so."""
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
    told = [f"{count} {'with other values' if kind == 'changed' else kind}" for kind, count in counts.items() if count]
    yield f"tensors: {', '.join([*told, f'{diff.equal} equal bit by bit'])}"
    for kind in ("added", "removed", "reshaped"):
        if counts[kind]:
            yield f"  {kind}"
            yield from _aligned([(group.pattern, _forms(group)) for group in getattr(diff, kind)], "    ")
    if diff.changed:
        yield "  with other values, and their largest absolute difference"
        rows = [(group.pattern, _forms(group), f"{group.max_abs_diff:.1e}") for group in diff.changed]
        yield from _aligned(rows, "    ")


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
        yield "graphs: as many operations of each kind, called in another way (of models, --graph shows how)"


def _differ(old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> bool:
    return old is not None and new is not None and old != new


def _part(title: str, rows: Rows) -> str:
    return "\n".join([title, *_aligned(rows, "  ")])


def _aligned(rows: Rows, indent: str) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
