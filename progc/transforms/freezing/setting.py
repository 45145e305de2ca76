"""Sets the trainable parameters of a program: new parameter objects that share memory, and frozen statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

from progc.ir import norms as norm_statistics
from progc.ir.deferred import defer, is_deferred, values
from progc.ir.graphs import copy_graph
from progc.ir.program import Program
from progc.transforms.freezing.blocks import Blocks
from progc.transforms.freezing.flow import nearest


def can_train(tensor: torch.Tensor) -> bool:
    """Returns whether a parameter of this dtype can have gradients."""
    return tensor.is_floating_point() or tensor.is_complex()


def fixed_parameters(program: Program) -> frozenset[str]:
    """Returns the parameters that did not train when the program was captured.

    Empty if no parameter trained, because that is no choice of the user.
    """
    able = {name for name, tensor in program.parameters() if can_train(tensor)}
    fixed = {name for name in able if program.specs[name].fixed}
    return frozenset(fixed if fixed != able else ())


def trainable(program: Program) -> dict[str, torch.Tensor]:
    """Returns the parameters that train, by canonical name, as an optimizer takes them."""
    return {name: tensor for name, tensor in program.parameters() if tensor.requires_grad}


def set_trainable(program: Program, names: Collection[str]) -> Program:
    """Returns the program in which exactly these parameters train; the same object if that is already so.

    A parameter that changes becomes a new object over the memory of the old one, under all of its names. Normalisations
    without a trainable parameter of their own stop updating their statistics (progc/ir/norms.py).

    Args:
        names: canonical names of parameters with a floating dtype.
    """
    made = {
        name: _with_gradient(tensor, name in names)
        for name, tensor in program.parameters()
        if can_train(tensor) and tensor.requires_grad is not (name in names)
    }
    wanted = set(_frozen_norms(program, names))
    norms = list(norm_statistics.norms(program.graphs["train"]))
    if not made and all(norm_statistics.is_still(node) is (node in wanted) for node, _ in norms):
        return program
    tensors = {name: made.get(program.tied.get(name, name), old) for name, old in program.tensors.items()}
    copies = {id(graph): copy_graph(graph) for graph in program.graphs.values()}  # one graph may stand for both modes
    graphs = {mode: copies[id(graph)] for mode, graph in program.graphs.items()}
    still = {node.name for node in wanted}
    for norm, nodes in list(norm_statistics.norms(graphs["train"])):
        for node in nodes:
            (norm_statistics.hold if norm.name in still else norm_statistics.release)(node)
    return program.replace(tensors=tensors, graphs=graphs)


def _with_gradient(tensor: torch.Tensor, trains: bool) -> torch.Tensor:
    """The same values as another parameter object."""
    if is_deferred(tensor):
        later = defer(lambda: values(tensor).detach(), tensor)
        return later.requires_grad_(trains)
    return nn.Parameter(tensor.detach(), requires_grad=trains)


def _frozen_norms(program: Program, names: Collection[str]) -> Iterator[fx.Node]:
    """Normalisations with running statistics in the train graph whose parameters are all frozen.

    These are their own gain and shift. If a normalisation has none, the parameters of its block count, and outside of
    blocks the weights of the contraction whose result it normalises.
    """
    owner = None
    for node, _ in norm_statistics.norms(program.graphs["train"]):
        own = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        own = [name for name in own if program.specs[name].kind == "parameter"]
        if not own:
            owner = owner or Blocks(program)
            own = sorted(owner.around(node) or nearest(node))
        if own and not any(name in names for name in own):
            yield node
