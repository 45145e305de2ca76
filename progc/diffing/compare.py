"""Compares two programs or output folders, fact by fact and tensor by tensor.

Names that differ in numbers alone are grouped into patterns: `blocks.{0-11}.attn.qkv.weight`.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from progc.diffing.facts import DiffSide, Facts, side_of
from progc.diffing.result import ChangeForm, ProgramDiff, SizeChange, TensorGroup
from progc.errors import InputError
from progc.ir.deferred import identity, values
from progc.ir.notation import dtype_name
from progc.ir.printer import print_graph
from progc.ir.program import MODES, Program

Kind = TypeVar("Kind", bound=Hashable)
Fields = tuple[frozenset[int], ...]

_CHUNK = 1 << 22  # elements that are compared in float64 at a time, without a second copy of a large tensor
# A number with a leading zero stays text, since `{1-2}` could not express it.
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]*)(?![0-9])")


def diff(
    a: Program | Path | str,
    b: Program | Path | str,
    *,
    graph: bool = False,
    names: tuple[str, str] | None = None,
) -> ProgramDiff:
    """Returns the differences between two programs or output folders.

    Tensors are matched by name. A block inserted in the middle therefore shifts the names of all blocks after it.

    Args:
        a, b: programs, or folders written by `progc grow --out` or `progc apply --out`. Only the JSON and the tensors
            of a folder are read.
        graph: whether to compare the printed graphs line by line too; folders hold no graphs.
        names: names of both sides for the output; by default class names and paths.

    Raises:
        InputError: a folder is not an output folder or is damaged, or `graph` is set for a folder.
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
    before: DiffSide, after: DiffSide
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, dict[str, ChangeForm]]]:
    """Tensors of both sides, and forms of those on one side only; non-persistent ones only if both are programs."""
    programs = before.program is not None and after.program is not None
    old = {name: tensor for name, tensor in before.tensors.items() if programs or name in before.saved}
    new = {name: tensor for name, tensor in after.tensors.items() if programs or name in after.saved}
    shared = {name: (tensor, new[name]) for name, tensor in old.items() if name in new}
    alone = {
        "added": {name: _form(tensor) for name, tensor in new.items() if name not in old},
        "removed": {name: _form(tensor) for name, tensor in old.items() if name not in new},
    }
    return shared, alone


def _form(tensor: torch.Tensor) -> ChangeForm:
    return ChangeForm(dtype_name(tensor.dtype), tuple(tensor.shape))


def _by_kind(items: Iterable[tuple[str, Kind]]) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {}
    for name, kind in items:
        kinds.setdefault(kind, []).append(name)
    return kinds


def _groups(
    items: Iterable[tuple[str, tuple[ChangeForm | None, ChangeForm | None]]],
    largest: Callable[[tuple[str, ...]], float | None] = lambda names: None,
) -> tuple[TensorGroup, ...]:
    """Groups names with the same forms, in order of first appearance."""
    listed = list(items)
    order = {name: place for place, (name, _) in enumerate(listed)}
    groups = [
        TensorGroup(pattern, names, *forms, largest(names))
        for forms, members in _by_kind(listed).items()
        for pattern, names in grouped(members)
    ]
    return tuple(sorted(groups, key=lambda group: order[group.names[0]]))


def _values(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """Compares values of tensors of the same form: groups of those that differ, and the number of equal ones."""
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


def _trainable(before: DiffSide, after: DiffSide) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Patterns of parameters that are frozen now (new ones included), and of those that train again."""
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


def _graphs(before: DiffSide, after: DiffSide) -> str:
    """Unified diffs of the printed graphs, train then eval; empty if they are equal."""
    assert before.program is not None and after.program is not None
    found: list[str] = []
    for mode in MODES:
        old, new = (print_graph(program, mode).splitlines()[1:] for program in (before.program, after.program))
        first, second = (f"{side.name}, {mode} graph" for side in (before, after))
        found += difflib.unified_diff(old, new, first, second, lineterm="")
    return "\n".join(found)


def distance(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """Returns the largest absolute difference of two tensors of the same shape and dtype.

    It is None if they are equal bit by bit, 0.0 if only signs of zeros or NaN bits differ, and inf if a value that is
    not finite differs. Values of deferred tensors are computed here and freed.
    """
    if first is second:
        return None
    a, b = (values(tensor).detach() for tensor in (first, second))
    if not a.is_meta and not b.is_meta and identity(a) == identity(b):
        return None
    a, b = (tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1) for tensor in (a, b))
    if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return None
    return max(_largest(x, y) for x, y in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True))


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.to(wide), b.to(wide)
    gap = (x - y).abs()
    gap[(x == y) | (x.isnan() & y.isnan())] = 0.0
    largest = float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max())
    return largest


def grouped(names: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns patterns with the names that they represent, in order of first appearance.

    A pattern represents exactly these names: names are merged only if they agree in all numbers but one.
    """
    families: dict[tuple[str, ...], dict[Fields, list[str]]] = {}
    for name in dict.fromkeys(names):
        parts = _NUMBER.split(name)
        fields = tuple(frozenset([int(part)]) for part in parts[1::2])
        families.setdefault(tuple(parts[0::2]), {})[fields] = [name]
    found = []
    for text, rows in families.items():
        for place in range(len(text) - 1):
            rows = _merged(rows, place)
        found += [(_pattern(text, fields), tuple(members)) for fields, members in rows.items()]
    return found


def _merged(rows: dict[Fields, list[str]], place: int) -> dict[Fields, list[str]]:
    """Merges rows that agree in all numbers but the one at `place`."""
    agreeing: dict[tuple[Fields, Fields], list[Fields]] = {}
    for fields in rows:
        agreeing.setdefault((fields[:place], fields[place + 1 :]), []).append(fields)
    return {
        (*before, frozenset().union(*(fields[place] for fields in group)), *after): [
            name for fields in group for name in rows[fields]
        ]
        for (before, after), group in agreeing.items()
    }


def _pattern(text: Sequence[str], fields: Fields) -> str:
    return "".join(itertools.chain(*itertools.zip_longest(text, map(numbers, fields), fillvalue="")))


def numbers(values: Iterable[int]) -> str:
    """Returns numbers as text: `{0-3,7}`, or the number itself if there is one."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return texts[0] if len(runs) == 1 and runs[0][0] == runs[0][1] else "{" + ",".join(texts) + "}"
