"""Compares two programs, or folders, fact by fact and tensor by tensor."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from progc.diffing.facts import Facts
from progc.diffing.patterns import grouped
from progc.diffing.result import Form, ProgramDiff, SizeChange, TensorGroup
from progc.diffing.side import Side, side_of
from progc.diffing.values import distance
from progc.errors import InputError
from progc.ir.notation import dtype_name
from progc.ir.printer import print_graph
from progc.ir.program import MODES, Program

Kind = TypeVar("Kind", bound=Hashable)


def diff(
    a: Program | Path | str,
    b: Program | Path | str,
    *,
    graph: bool = False,
    names: tuple[str, str] | None = None,
) -> ProgramDiff:
    """What changed from `a` to `b`.

    Tensors are matched by name, not by where a pass took them from: a block that was inserted in the middle moves the
    names of those behind it.

    Args:
        a, b: programs, or folders written by `progc grow --out` or `progc apply --out`, of which JSON and tensors are
            read and nothing else.
        graph: also compare the printed graphs line by line; folders hold none.
        names: what the two are called; by default class names and paths.

    Raises:
        InputError: a folder that is none of ours or is damaged, or graphs asked of a folder.
    """
    called = names or (None, None)
    before, after = side_of(a, called[0]), side_of(b, called[1])
    for side in (before, after):
        if graph and side.program is None:
            raise InputError(f"{side.name} is an output folder, which holds no graph; give the model itself")
    old, new = before.facts, after.facts
    shared, other = _shared(before, after)
    froze, thawed = _trainable(before, after)
    return ProgramDiff(
        names=(before.name, after.name),
        before=old,
        after=new,
        chains=_sizes(old.chains, new.chains),
        axes=_sizes(old.axes, new.axes),
        added=_groups((name, (None, form)) for name, form in other["added"].items()),
        removed=_groups((name, (form, None)) for name, form in other["removed"].items()),
        reshaped=_groups((name, (_form(x), _form(y))) for name, (x, y) in shared.items() if _form(x) != _form(y)),
        **_values({name: pair for name, pair in shared.items() if _form(pair[0]) == _form(pair[1])}),
        froze=froze,
        thawed=thawed,
        tied=_gone(new.tied, old.tied),
        untied=_gone(old.tied, new.tied),
        operations=_operations(old, new),
        graph=_graphs(before, after) if graph else None,
    )


def _shared(
    before: Side, after: Side
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, dict[str, Form]]]:
    """Tensors that both have, and forms of those that only one has. What no file holds is compared in programs only."""
    programs = before.program is not None and after.program is not None
    old = {name: tensor for name, tensor in before.tensors.items() if programs or name in before.saved}
    new = {name: tensor for name, tensor in after.tensors.items() if programs or name in after.saved}
    shared = {name: (tensor, new[name]) for name, tensor in old.items() if name in new}
    alone = {
        "added": {name: _form(tensor) for name, tensor in new.items() if name not in old},
        "removed": {name: _form(tensor) for name, tensor in old.items() if name not in new},
    }
    return shared, alone


def _form(tensor: torch.Tensor) -> Form:
    return Form(dtype_name(tensor.dtype), tuple(tensor.shape))


def _by_kind(items: Iterable[tuple[str, Kind]]) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {}
    for name, kind in items:
        kinds.setdefault(kind, []).append(name)
    return kinds


def _groups(
    items: Iterable[tuple[str, tuple[Form | None, Form | None]]],
    largest: Callable[[tuple[str, ...]], float | None] = lambda names: None,
) -> tuple[TensorGroup, ...]:
    """Groups of names with the same forms, in order of first appearance."""
    listed = list(items)
    order = {name: place for place, (name, _) in enumerate(listed)}
    groups = [
        TensorGroup(pattern, names, *forms, largest(names))
        for forms, members in _by_kind(listed).items()
        for pattern, names in grouped(members)
    ]
    return tuple(sorted(groups, key=lambda group: order[group.names[0]]))


def _values(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """Tensors of the same form: groups of those with other values, and how many are equal."""
    gaps = {name: distance(old, new) for name, (old, new) in pairs.items()}
    apart = {name: gap for name, gap in gaps.items() if gap is not None}
    forms = ((name, (_form(pairs[name][0]), _form(pairs[name][1]))) for name in apart)
    return {
        "changed": _groups(forms, lambda names: max(apart[name] for name in names)),
        "equal": len(gaps) - len(apart),
    }


def _sizes(old: Mapping[str, int] | None, new: Mapping[str, int] | None) -> tuple[SizeChange, ...] | None:
    if old is None or new is None:
        return None
    changes = ((name, (old.get(name), new.get(name))) for name in {**old, **new})
    return tuple(
        SizeChange(pattern, names, *sizes)
        for sizes, members in _by_kind(item for item in changes if item[1][0] != item[1][1]).items()
        for pattern, names in grouped(members)
    )


def _trainable(before: Side, after: Side) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Patterns of parameters that froze, new ones that are frozen among them, and of those that are trained again."""
    old, new = before.facts.frozen, after.facts.frozen
    if old is None or new is None:
        return None, None
    froze = [name for name in new if name not in set(old)]
    thawed = [name for name in old if name not in set(new) and name in after.tensors]
    return tuple(pattern for pattern, _ in grouped(froze)), tuple(pattern for pattern, _ in grouped(thawed))


def _gone(ours: Mapping[str, str] | None, theirs: Mapping[str, str] | None) -> dict[str, str] | None:
    if ours is None or theirs is None:
        return None
    return {alias: name for alias, name in ours.items() if theirs.get(alias) != name}


def _operations(old: Facts, new: Facts) -> dict[str, dict[str, tuple[int, int]]] | None:
    if old.operations is None or new.operations is None:
        return None
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for mode in MODES:
        one, two = old.operations.get(mode, {}), new.operations.get(mode, {})
        counts = {name: (one.get(name, 0), two.get(name, 0)) for name in sorted({*one, *two})}
        found[mode] = {name: count for name, count in counts.items() if count[0] != count[1]}
    return found


def _graphs(before: Side, after: Side) -> str:
    """Unified diffs of the printed graphs, train before eval; empty if both are the same."""
    assert before.program is not None and after.program is not None
    found: list[str] = []
    for mode in MODES:
        old, new = (print_graph(program, mode).splitlines()[1:] for program in (before.program, after.program))
        first, second = (f"{side.name}, {mode} graph" for side in (before, after))
        found += difflib.unified_diff(old, new, first, second, lineterm="")
    return "\n".join(found)
