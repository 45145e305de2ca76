"""Finds the buffers of a program that its train graph writes to when it runs, such as running statistics."""

from __future__ import annotations

from torch import fx

from progc.ir.graphs import written_to
from progc.ir.norms import norms
from progc.ir.operations import argument
from progc.ir.program import Program


def written_buffers(program: Program) -> frozenset[str]:
    """Returns the names of the buffers that the train graph may write to, tied names included.

    A write to a view of a buffer is a write to the buffer. Running statistics are added: the schemas of normalisations
    do not say that they are written to.
    """
    graph = program.graphs["train"]
    written = written_to(graph)
    found = {str(node.target) for node in graph.nodes if node.op == "get_attr" and node.name in written}
    for node, _ in norms(graph):
        own = (argument(node, "running_mean"), argument(node, "running_var"))
        found.update(str(value.target) for value in own if isinstance(value, fx.Node) and value.op == "get_attr")
    tied = program.tied
    first = {tied.get(name, name) for name in found}
    return frozenset(
        name for name in program.tensors
        if tied.get(name, name) in first and program.specs[name].kind != "parameter"
    )  # fmt: skip
