"""Dense chains: every block reads the concatenation of the input of the stage and the outputs of all earlier blocks.

The blocks may differ only in the size of the concatenated dim: where two forms differ, each value must be the size of
the concatenation of its block. The concatenation may be inside the block or before it, and may list all values or join
the previous concatenation with one more value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from progc.analysis.chains.assemble import blocks_of, differences
from progc.analysis.chains.canonical import Form, View, canonical_form
from progc.analysis.chains.names import Container
from progc.analysis.chains.runs import RunPiece
from progc.analysis.chains.table import Chain
from progc.ir.operations import CONCATENATIONS, op_name
from progc.ir.program import MODES, Mode


@dataclasses.dataclass(frozen=True)
class _Stage:
    carried: tuple[tuple[str, ...], ...]
    cats: tuple[str, ...]
    shared: tuple[str, ...]


def dense_chain(
    views: Mapping[Mode, View], container: Container, numbers: Sequence[int], pieces: Sequence[RunPiece]
) -> Chain | None:
    """Returns the numbered modules of a container as one dense chain, or None."""
    if len(pieces) < 2 or len(pieces) != len(numbers):
        return None
    stages = {mode: _stage(views[mode], pieces, mode) for mode in MODES}
    found = {mode: stage for mode, stage in stages.items() if stage is not None}
    if len(found) < len(MODES):
        return None
    return Chain(
        name=container.name,
        kind="dense",
        period=1,
        blocks=blocks_of(pieces),
        siblings=len(numbers),
        pattern=f"{container.stem}#.",
        differences=differences(pieces, 1),
        carried={mode: stage.carried for mode, stage in found.items()},
        shared={mode: stage.shared for mode, stage in found.items()},
        cats={mode: stage.cats for mode, stage in found.items()},
    )


def _stage(view: View, pieces: Sequence[RunPiece], mode: Mode) -> _Stage | None:
    forms = [piece.forms[mode] for piece in pieces]
    if any(len(form.exits) != 1 for form in forms):
        return None
    exits = [form.exits[0][0] for form in forms]
    lists: list[list[fx.Node]] = []
    cats: list[fx.Node | None] = []
    for j in range(len(pieces) + 1):
        if j == 0:
            head = _first_cat(forms[0], _joined(exits[0]))
            values = _inputs(head) if head is not None else None
        else:
            head = next((user for user in _joined(exits[j - 1]) if _last_is_new(user, lists[-1], cats[-1])), None)
            if head is None:
                return None
            values = _flat(head, cats[-1], lists[-1])
        if j == 0 and values is None:
            entry = _entry(forms[0], exits[0])
            if entry is None:
                return None
            values = [entry]
        assert values is not None
        if j > 0 and sorted(map(id, values)) != sorted(map(id, [*lists[-1], exits[j - 1]])):
            return None
        lists.append(values)
        cats.append(head)
    every = {cat for cat in cats if cat is not None}
    for node in exits:
        if any(user not in every for user in node.users):
            return None
    for form, cat in zip(forms, cats[:-1], strict=True):
        if cat is not None and any(user not in form.nodes and user not in every for user in cat.users):
            return None
    rests = _rests(view, pieces, forms, [cat if cat is not None else lists[0][0] for cat in cats[:-1]])
    if rests is None:
        return None
    return _Stage(
        carried=tuple(tuple(node.name for node in row) for row in lists),
        cats=tuple("" if cat is None else cat.name for cat in cats),
        shared=rests,
    )


def _is_cat(node: fx.Node) -> bool:
    return node.op == "call_function" and op_name(node) in CONCATENATIONS


def _joined(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if _is_cat(user)]


def _inputs(cat: fx.Node) -> list[fx.Node]:
    parts = cat.args[0]
    assert isinstance(parts, (list, tuple))
    return [part for part in parts if isinstance(part, fx.Node)]


def _flat(cat: fx.Node, before: fx.Node | None, values: list[fx.Node]) -> list[fx.Node]:
    """Returns the operands of a concatenation, with the previous concatenation replaced by its operands."""
    flat: list[fx.Node] = []
    for part in _inputs(cat):
        flat += values if part is before else [part]
    return flat


def _last_is_new(cat: fx.Node, values: list[fx.Node], before: fx.Node | None) -> bool:
    return len(_flat(cat, before, values)) == len(values) + 1


def _first_cat(form: Form, later: Sequence[fx.Node]) -> fx.Node | None:
    """Returns the concatenation in the first block, of outside values that the next concatenation joins too."""
    if not later:
        return None
    outside = set(form.slots)
    for node in form.order:
        if _is_cat(node) and all(part in outside for part in _inputs(node)):
            if any(set(_inputs(node)) <= set(_inputs(user)) or node in _inputs(user) for user in later):
                return node
    return None


def _entry(form: Form, exit_node: fx.Node) -> fx.Node | None:
    """Returns the outside value that is joined with the exit of a first block without a concatenation."""
    for cat in _joined(exit_node):
        rest = [part for part in _inputs(cat) if part is not exit_node]
        if len(rest) == 1 and rest[0] in form.slots:
            return rest[0]
    return None


def _rests(
    view: View, pieces: Sequence[RunPiece], forms: Sequence[Form], heads: Sequence[fx.Node]
) -> tuple[str, ...] | None:
    """Returns the names of shared values if the blocks differ only in the concatenated size, else None."""
    keys: list[Any] = []
    shared: list[fx.Node] | None = None
    for piece, form, head in zip(pieces, forms, heads, strict=True):
        local = dict(zip(piece.tensors, piece.patterns, strict=True))
        rest = canonical_form(view, [node for node in form.nodes if node is not head], local.get)
        others = [slot for slot in rest.slots if slot is not head]
        if head not in rest.slots or (shared is not None and others != shared):
            return None
        shared = others
        keys.append(rest.key)
    sizes = [_axis_size(head, heads) for head in heads]
    if not _agree(keys, sizes):
        return None
    return tuple(node.name for node in shared or ())


def _axis_size(head: fx.Node, heads: Sequence[fx.Node]) -> int:
    cat = next((node for node in heads if _is_cat(node)), None)
    dim = 0
    if cat is not None:
        given = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
        dim = given if isinstance(given, int) else 0
    return int(head.meta["tensor"].shape[dim])


def _agree(values: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Returns whether nested tuples are equal except where each holds its own size."""
    if all(value == values[0] for value in values[1:]):
        return True
    if all(isinstance(value, tuple) for value in values):
        if len({len(value) for value in values}) > 1:
            return False
        return all(_agree(column, sizes) for column in zip(*values, strict=True))
    return list(values) == list(sizes)
