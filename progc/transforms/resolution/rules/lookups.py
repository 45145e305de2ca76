"""Rows of a table, looked up by the values of another tensor."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.lift.extents import Dim
from progc.transforms.resolution.values import Args, Value
from progc.transforms.resolution.walk import Walk, rule


@rule("index", "_unsafe_index")
def index(walk: Walk, node: fx.Node, args: Args) -> Any:
    """`table[i]`: the dims of the index in place of the one that it picks from."""
    value: Value = args["self"]
    places = [place for place, item in enumerate(args["indices"]) if isinstance(item, Value)]
    if len(places) != 1:
        return None
    picker: Value = args["indices"][places[0]]
    _looked_up(walk, value, picker)
    return [*value.dims[: places[0]], *picker.dims, *value.dims[places[0] + 1 :]]


@rule("index_select")
def index_select(walk: Walk, node: fx.Node, args: Args) -> Any:
    """As `index`, along a given dim."""
    value, picker, dim = args["self"], args["index"], args["dim"] % len(args["self"].dims)
    _looked_up(walk, value, picker)
    return [*value.dims[:dim], *picker.dims, *value.dims[dim + 1 :]]


@rule("embedding")
def embedding(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Rows of a matrix."""
    weight, picker = args["weight"], args["indices"]
    _looked_up(walk, weight, picker)
    dims: list[Dim] = [*picker.dims, weight.dims[-1]]
    return dims


def _looked_up(walk: Walk, table: Value, picker: Value) -> None:
    if table.table is not None and picker.table is not None:
        walk.lookups.add((table.table, picker.table))
