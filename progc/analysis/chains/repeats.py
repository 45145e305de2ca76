"""Finds repeated regions in the sequence of operations of a graph.

Every call node has a label: its operation, hard literals, and the shapes of its operands and its value, but not the
sources of its operands. A flat model may have a chain where labels repeat with some period; connections and names are
checked afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from progc.analysis.chains.canonical import View, meta_key
from progc.ir.operations import op_name


@dataclasses.dataclass(frozen=True)
class RepeatedRegion:
    """Indices `start .. stop - 1` of a sequence whose labels repeat with `period`, at least twice."""

    start: int
    stop: int
    period: int

    @property
    def length(self) -> int:
        """The number of operations in the region."""
        return self.stop - self.start


def sequence(view: View, covered: set[fx.Node]) -> list[fx.Node | None]:
    """Returns the operations in graph order without noise and sizes; None in place of covered nodes."""
    out: list[fx.Node | None] = []
    for node in view.nodes:
        if node.op != "call_function" or node in view.hidden or node in view.alias:
            continue
        if node in covered:
            if out and out[-1] is not None:
                out.append(None)
            continue
        out.append(node)
    return out


def label(view: View, node: fx.Node, both_modes: bool = False) -> Any:
    """Returns the label of a node; with `both_modes` without train flags, so that it is equal in both graphs."""

    def of(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if View.is_size(value):
                return value.meta["tensor"]
            if value.op == "get_attr":
                spec = view.program.specs[str(value.target)]
                if spec.kind == "constant":
                    return ("constant", meta_key(value.meta.get("tensor")))
                return ("own", meta_key(value.meta.get("tensor")))
            return "value"
        if isinstance(value, (list, tuple)):
            return tuple(of(item) for item in value)
        if isinstance(value, float) or (both_modes and isinstance(value, bool)):
            return "soft"
        return value if value is None or isinstance(value, (int, str)) else str(value)

    name = op_name(node)
    args = [of(arg) for arg in node.args]
    if name == "roll":
        args[1] = "soft"
    kwargs = tuple((key, of(node.kwargs[key])) for key in sorted(node.kwargs))
    return (str(node.target), tuple(args), kwargs, meta_key(node.meta.get("tensor")))


def regions(labels: Sequence[Any]) -> list[RepeatedRegion]:
    """Returns all maximal regions of every period, largest first, then by smallest period.

    Compares the sequence with itself at every distance: n^2 / 2 integer comparisons, vectorised.
    """
    table: dict[Any, int] = {}
    codes = np.array(
        [-1 - k if one is None else table.setdefault(one, len(table)) for k, one in enumerate(labels)], dtype=np.int64
    )
    found: list[RepeatedRegion] = []
    for period in range(1, len(codes) // 2 + 1):
        same = codes[period:] == codes[:-period]
        if int(same.sum()) < period:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
        for start, stop in edges.reshape(-1, 2):
            if stop - start >= period:
                found.append(RepeatedRegion(int(start), int(stop) + period, period))
    return sorted(found, key=lambda region: (-region.length, region.period, region.start))


def live_counts(view: View, nodes: Sequence[fx.Node | None]) -> list[int]:
    """Returns for each index c how many values computed before c are read at or after c."""
    index = {node: k for k, node in enumerate(nodes) if node is not None}
    change = [0] * (len(nodes) + 2)
    last: dict[fx.Node, int] = {}
    for k, node in enumerate(nodes):
        if node is None:
            continue
        for arg in node.all_input_nodes:
            while arg in view.alias:
                arg = view.alias[arg]
            if arg in index:
                last[arg] = k
    for node, k in last.items():
        change[index[node] + 1] += 1
        change[k + 1] -= 1
    counts, level = [], 0
    for step in change[: len(nodes) + 1]:
        level += step
        counts.append(level)
    return counts
