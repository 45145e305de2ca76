"""Lengths: the Euclidean norm over k copies of every unit is sqrt(k) times the norm over the units.

A value that is divided by such a length shrinks by sqrt(k). The sum of products of two such values over k times as
many units therefore stays the same: cosine similarity needs no correction (docs/growth.md, section 1). Every value
records the lengths by which it was multiplied (+1) or divided (-1). If an operation does not pass a common factor
through, the dims that the length was taken over are pinned.
"""

from __future__ import annotations

import collections
import dataclasses
import operator
from typing import TYPE_CHECKING, Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.records import Length, Value, flat_values, growing_atoms
from progc.ir.operations import HOMOGENEOUS, MOVEMENT, POINTWISE, mutates, op_name

if TYPE_CHECKING:
    from progc.analysis.axes.context import Context


VANISHING = 1e-11
"""Largest lower bound of a length that only prevents a division by zero."""

_PASS = MOVEMENT | POINTWISE | HOMOGENEOUS
_JOIN = frozenset(("add", "sub", "cat", "stack"))
_CONTRACT = frozenset(
    ("scaled_dot_product_attention", "matmul", "mm", "bmm", "linear", "einsum", "conv1d", "conv2d", "conv3d")
)


def follow(ctx: Context, node: fx.Node, value: Any) -> Any:
    """Returns the value of `node` with the lengths that its operands pass on; pins what the op cannot pass on."""
    given = [item for item in flat_values(ctx.resolve([*node.args, *node.kwargs.values()])) if item.lengths]
    if not given or node.target is operator.getitem:
        return value
    # An in-place op changes aliases of its operand, which would keep the old lengths.
    found = None if mutates(node) else _handed_on(ctx, node, op_name(node), given)
    if found is None:
        for item in given:
            ctx.pin_lengths(item)
        return value
    return _with(value, found)


def _handed_on(ctx: Context, node: fx.Node, name: str, given: list[Value]) -> tuple[Length, ...] | None:
    first, *others = ctx.resolve([*node.args[:2]])
    if name in _CONTRACT:  # decided by the rule
        return () if all(id(item) in ctx.decided for item in given) else None
    if name in _JOIN:
        terms = list(flat_values(first if isinstance(first, list) else [first, *others]))
        plain = name in ("add", "sub") and (len(terms) < 2 or node.kwargs)
        alike = all(_counted(term) == _counted(terms[0]) for term in terms)
        return terms[0].lengths if alike and not plain else None
    if name in _PASS:
        return first.lengths if isinstance(first, Value) else None
    if name in ("clamp", "clamp_min"):
        least = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
        only = isinstance(least, float) and 0 <= least <= VANISHING and len(node.args) < 3 and not node.kwargs
        return first.lengths if only else None
    second = others[0] if others else None
    own, other = (item.lengths if isinstance(item, Value) else () for item in (first, second))
    if name == "mul":
        return (*own, *other)
    if name == "div" and "rounding_mode" not in node.kwargs:
        return (*own, *((dim, -sign) for dim, sign in other))
    return None


def _counted(value: Value) -> collections.Counter[tuple[D.Atom, int]]:
    return collections.Counter((atom, sign) for dim, sign in value.lengths for atom in growing_atoms(dim))


def _with(value: Any, lengths: tuple[Length, ...]) -> Any:
    if isinstance(value, Value):
        return dataclasses.replace(value, lengths=lengths)
    if isinstance(value, (list, tuple)):
        return [_with(item, lengths) for item in value]
    return value
