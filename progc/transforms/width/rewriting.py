"""Widening a program: tensors through the lift, graphs through their literals, in one step."""

from __future__ import annotations

from typing import Any

from progc.analysis.axes import dims as D
from progc.ir.graphs import copy_graph, propagate
from progc.ir.literals import drop_unread_sizes, set_literal
from progc.ir.program import MODES, Program
from progc.transforms.width.widening import Widening


def rewrite(program: Program, widening: Widening, tensors: dict[str, Any]) -> Program:
    """The program with new tensors and the sizes in its graphs brought into line."""
    graphs = {}
    for mode in MODES:
        graph = copy_graph(program.graphs[mode])
        nodes = {node.name: node for node in graph.nodes}
        for literal in widening.table.literals:
            there = literal.mode == mode and literal.node in nodes  # not in a block that `shrink` left out
            if there and any(widening.grows(part) for part in literal.parts):
                new = sum(widening.size(part) for part in literal.parts)
                old = sum(D.size_of(part) for part in literal.parts)
                if literal.value is not None:
                    share = literal.value * new / old
                    set_literal(nodes[literal.node], literal.path, old, int(share) if share.is_integer() else share)
                    continue
                set_literal(nodes[literal.node], literal.path, old, new)
        drop_unread_sizes(graph)
        graphs[mode] = graph
    ordered = {name: tensors[name] for name in program.tensors}
    grown = program.replace(graphs=graphs, tensors=ordered)
    for mode in MODES:
        propagate(grown, grown.graphs[mode], mode)
    return grown
