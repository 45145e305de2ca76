"""Unties tensors that the source ties and the target does not: each name gets a copy, which is exact.

The grown class can still load a tied state, but its two tensors train separately. The target's graphs show, operation
by operation, which reads belong to which name.
"""

from __future__ import annotations

from progc.errors import TargetError
from progc.ir.differences import pairs
from progc.ir.graphs import copy_graph
from progc.ir.program import MODES, Program
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift
from progc.pipeline.base import PassResult


def untie(program: Program, target: Program) -> PassResult:
    """Returns the program with separate tensors of the same values where `target` has them; depths must be equal.

    Returns:
        The same object if there is nothing to untie. The lift copies the values. Optimizer moments of a copy start at
            zero,
        because the gradients of a tied tensor cannot be separated.

    Raises:
        TargetError: the target ties two tensors that are separate in the source.
    """
    tensors = program.tensors
    for alias, canonical in target.tied.items():
        if alias in tensors and canonical in tensors and tensors[alias] is not tensors[canonical]:
            raise TargetError(
                f"{target.class_name} ties {alias} to {canonical}, and they are two tensors in the source; "
                "two tensors cannot become one"
            )
    loose = {
        alias: canonical
        for alias, canonical in program.tied.items()
        if alias in target.tensors
        and canonical in target.tensors
        and target.tensors[alias] is not target.tensors[canonical]
    }
    graphs = {}
    for mode in MODES:
        aligned = pairs(program, target, mode)
        if not loose or aligned is None:
            return PassResult(program, False, lossless=True)
        graph = copy_graph(program.graphs[mode])
        ours = {node.name: node for node in graph.nodes}
        for mine, theirs in aligned:
            reads = [node for node in mine.all_input_nodes if node.op == "get_attr"]
            names = [str(node.target) for node in theirs.all_input_nodes if node.op == "get_attr"]
            for read, name in zip(reads, names, strict=False):
                if loose.get(name) == str(read.target):
                    old = ours[read.name]
                    known = next((n for n in graph.nodes if n.op == "get_attr" and n.target == name), None)
                    if known is None:
                        with graph.inserting_after(old):
                            known = graph.create_node("get_attr", name)
                            known.meta = dict(old.meta)
                    ours[mine.name].replace_input_with(old, known)
        for node in list(graph.nodes):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        graphs[mode] = graph
    lift = Lift(tuple(TensorLift(alias, canonical, fresh=True) for alias, canonical in loose.items()))
    grown = lift.apply(tensors)
    free = program.replace(
        graphs=graphs,
        tensors={name: grown[name] for name in tensors},
        tied={alias: canonical for alias, canonical in program.tied.items() if alias not in loose},
    )
    notes = tuple(
        f"{alias} becomes a copy of {canonical}; the source ties the two" for alias, canonical in loose.items()
    )
    return PassResult(free, True, {"tensors untied": len(loose)}, lift, notes, True)
