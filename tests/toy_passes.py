"""Passes made for the tests of the pass infrastructure: two that are right, and a wrapper for wrong ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from progc.ir.graphs import copy_graph, propagate
from progc.ir.program import MODES, Program, TensorSpec
from progc.pipeline.base import Pass, PassResult, option


@dataclasses.dataclass(frozen=True)
class AddBias(Pass):
    """Adds a zero bias to every output of the network."""

    name: ClassVar[str] = "add-bias"
    label: str = option("bias", help="name of the new parameter")

    def run(self, program: Program) -> PassResult:
        if self.label in program.tensors:
            return PassResult(program, changed=False, notes=(f"there is a `{self.label}` already",), lossless=True)
        output = program.graphs["eval"].output_node().args[0][0]  # type: ignore[index]
        bias = nn.Parameter(torch.zeros(output.meta["tensor"].shape[-1]))  # type: ignore[union-attr]
        grown = program.replace(
            tensors={**program.tensors, self.label: bias},
            specs={**program.specs, self.label: TensorSpec("parameter")},
        )
        graphs = {}
        for mode in MODES:
            graph = copy_graph(program.graphs[mode])
            last = graph.output_node()
            with graph.inserting_before(last):
                get = graph.get_attr(self.label)
                total = graph.call_function(torch.ops.aten.add.Tensor, (last.args[0][0], get))  # type: ignore[index]
            last.args = ((total,),)
            propagate(grown, graph, mode)
            graphs[mode] = graph
        return PassResult(grown.replace(graphs=graphs), changed=True, counts={"biases": 1}, lossless=True)


@dataclasses.dataclass(frozen=True)
class Broken(Pass):
    """Does whatever `edit` does, and calls it a change unless told otherwise."""

    name: ClassVar[str] = "broken"
    edit: ClassVar[Callable[[Program], Program]]
    changed: ClassVar[bool] = True

    def run(self, program: Program) -> PassResult:
        return PassResult(type(self).edit(program), type(self).changed)


def broken(edit: Callable[[Program], Program], changed: bool = True) -> Pass:
    """A pass called "broken" that applies `edit`."""
    return type("Edited", (Broken,), {"edit": staticmethod(edit), "changed": changed})()  # type: ignore[no-any-return]


def copied(program: Program) -> Program:
    """The program with graphs that an edit may spoil."""
    return program.replace(graphs={mode: copy_graph(program.graphs[mode]) for mode in MODES})
