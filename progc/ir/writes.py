"""Finds the tensors of a program that a graph writes to when it runs, such as running statistics."""

from __future__ import annotations

from torch import fx

from progc.ir.norms import norms
from progc.ir.operations import argument, mutates
from progc.ir.program import Program


def written_buffers(program: Program) -> frozenset[str]:
    """Returns the names of the buffers that the train graph may write to, tied names included.

    Views count as what they are views of. A custom operation that writes to an argument counts for all its arguments.
    """
    graph = program.graphs["train"]
    held: dict[fx.Node, str] = {}
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            held[node] = str(node.target)
            continue
        if node.op != "call_function":
            continue
        if mutates(node):
            found.update(held[source] for source in node.all_input_nodes if source in held)
        if _may_share(node):
            source = next((one for one in node.all_input_nodes if one in held), None)
            if source is not None:
                held[node] = held[source]
    for node, _ in norms(graph):
        own = (argument(node, "running_mean"), argument(node, "running_var"))
        found.update(held[value] for value in own if isinstance(value, fx.Node) and value in held)
    tied = program.tied
    first = {tied.get(name, name) for name in found}
    return frozenset(
        name for name in program.tensors
        if tied.get(name, name) in first and program.specs[name].kind != "parameter"
    )  # fmt: skip


def _may_share(node: fx.Node) -> bool:
    """Whether a result may share memory with an argument: a view, what an in-place operation returns, or an item."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True  # `getitem` and other functions of Python
    return any(result.alias_info is not None for result in schema.returns)
