"""Copying graphs, recomputing their metadata, naming their content."""

from __future__ import annotations

import copy
import dataclasses
import operator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import progc
from progc.errors import VerifyError
from progc.ir.graphs import copy_graph, fingerprint, infer, propagate, shape, used_names, written_to
from progc.ir.printer import print_graph
from progc.ir.program import MODES, TensorMeta
from tests import nets


class DropPath(nn.Module):
    """In-place random ops, a size taken from the input, and a multi-output op with getitem."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, dim=-1)
        if self.training:
            a = a * a.new_empty(a.shape[0], 1).bernoulli_(0.5)
        return self.last((a + b).reshape(x.shape[0] * 2, 3).reshape(x.shape[0], 6))


NETS = {
    "einsum": (nets.EinsumTransformer, (torch.randn(2, 6, 10),)),
    "flat": (nets.FlatMixer, (torch.randn(2, 3, 16, 16),)),
    "conv": (nets.ConvNet, (torch.randn(2, 3, 8, 8),)),
    "tied": (nets.TiedWeights, (torch.randint(11, (2, 5)),)),
    "structured": (nets.StructuredOutput, (torch.randn(2, 6),)),
    "drop-path": (DropPath, (torch.randn(4, 6),)),
}


@pytest.fixture(scope="module", params=list(NETS))
def program(request: pytest.FixtureRequest) -> progc.Program:
    build, args = NETS[request.param]
    return progc.capture(build(), args)


def test_a_copy_has_the_same_nodes_and_its_own_metadata(program: progc.Program) -> None:
    for mode in MODES:
        graph = program.graphs[mode]
        twin = copy_graph(graph)
        assert str(twin) == str(graph)
        twin.lint()
        for old, new in zip(graph.nodes, twin.nodes, strict=True):
            assert (old.name, old.op, old.target, old.meta) == (new.name, new.op, new.target, new.meta)
            assert old is not new and old.meta is not new.meta


def test_editing_a_copy_leaves_the_original(program: progc.Program) -> None:
    before = print_graph(program, "train", full=True), fingerprint(program)
    metas = [copy.deepcopy(node.meta) for node in program.graphs["train"].nodes]
    twin = copy_graph(program.graphs["train"])
    for node in twin.nodes:
        node.meta["tensor"] = None
        node.meta.setdefault("nn_module_stack", {})["extra"] = ("x", "y")
    next(iter(reversed(twin.nodes))).args = ((),)
    assert (print_graph(program, "train", full=True), fingerprint(program)) == before
    assert metas == [node.meta for node in program.graphs["train"].nodes]


def test_propagate_finds_what_capture_recorded(program: progc.Program) -> None:
    for mode in MODES:
        twin = copy_graph(program.graphs[mode])
        for node in twin.nodes:
            node.meta.pop("tensor")
        propagate(program, twin, mode)
        for old, new in zip(program.graphs[mode].nodes, twin.nodes, strict=True):
            assert new.meta["tensor"] == old.meta["tensor"], new.name


def test_propagate_changes_no_tensor_and_no_random_state(program: progc.Program) -> None:
    tensors = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    state = torch.get_rng_state()
    propagate(program, copy_graph(program.graphs["train"]), "train")
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in program.tensors.items():
        assert torch.equal(tensor, tensors[name])


def test_sizes_and_python_operators_are_ints() -> None:
    program = progc.capture(DropPath(), (torch.randn(4, 6),))
    graph = copy_graph(program.graphs["train"])
    size = next(node for node in graph.nodes if "sym_size" in str(node.target))
    with graph.inserting_after(size):
        twice = graph.call_function(operator.mul, (size, 2))
    with graph.inserting_after(twice):
        half = graph.call_function(operator.floordiv, (twice, 4))
    propagate(program, graph, "train")
    assert (size.meta["tensor"], twice.meta["tensor"], half.meta["tensor"]) == (4, 8, 2)


def test_propagate_with_a_larger_batch() -> None:
    program = progc.capture(nets.FlatMixer(), (torch.randn(2, 3, 16, 16),))
    metas = infer(program, program.graphs["eval"], "eval", batch_factor=3)
    assert [meta.shape for node, meta in metas.items() if node.op == "placeholder"] == [(6, 3, 16, 16)]


def test_propagate_names_the_node_and_the_shapes() -> None:
    program = progc.capture(nets.StructuredOutput(), (torch.randn(2, 6),))
    wrong = program.replace(tensors={**program.tensors, "head.weight": nn.Parameter(torch.zeros(3, 9))})
    expected = (
        r"eval graph, node `linear_1` in head: aten.linear.default\(%relu, head.weight, head.bias\) cannot take "
        r"%relu f32\[2, 8\], head.weight f32\[3, 9\], head.bias f32\[3\]: "
    )
    with pytest.raises(VerifyError, match=expected) as raised:
        propagate(wrong, copy_graph(wrong.graphs["eval"]), "eval")
    assert "\n" not in str(raised.value)


def test_propagate_names_a_missing_tensor() -> None:
    program = progc.capture(nets.StructuredOutput(), (torch.randn(2, 6),))
    tensors = {name: tensor for name, tensor in program.tensors.items() if name != "head.bias"}
    with pytest.raises(VerifyError, match="node `head_bias`: the program has no tensor `head.bias`"):
        propagate(program.replace(tensors=tensors), copy_graph(program.graphs["eval"]), "eval")


def test_shape_and_used_names() -> None:
    program = progc.capture(nets.TiedWeights(), (torch.randint(11, (2, 5)),))
    graph = program.graphs["eval"]
    last = next(node for node in reversed(graph.nodes) if node.op == "call_function")
    assert shape(last) == (2, 5, 11) == last.meta["tensor"].shape
    assert last.meta["tensor"] == TensorMeta((2, 5, 11), torch.float32)
    assert used_names(graph) == {"embed.weight", "mix.weight", "mix.bias"}


def test_fingerprint_follows_graphs_names_shapes_and_dtypes_not_values() -> None:
    program = progc.capture(nets.StructuredOutput(), (torch.randn(2, 6),))
    base = fingerprint(program)
    assert fingerprint(progc.capture(nets.StructuredOutput(), (torch.randn(2, 6),))) == base

    def with_weight(weight: torch.Tensor) -> str:
        return fingerprint(program.replace(tensors={**program.tensors, "head.weight": nn.Parameter(weight)}))

    assert with_weight(torch.zeros(3, 8)) == base
    assert with_weight(torch.zeros(4, 8)) != base
    assert with_weight(torch.zeros(3, 8, dtype=torch.float64)) != base
    graph = copy_graph(program.graphs["train"])
    relu = next(node for node in graph.nodes if "relu" in str(node.target))
    relu.target = torch.ops.aten.gelu.default
    assert fingerprint(program.replace(graphs={**program.graphs, "train": graph})) != base


def test_fingerprint_follows_the_trainable_set() -> None:
    program = progc.capture(nets.StructuredOutput(), (torch.randn(2, 6),))
    frozen = nn.Parameter(program.tensors["head.weight"].detach(), requires_grad=False)
    assert fingerprint(program.replace(tensors={**program.tensors, "head.weight": frozen})) != fingerprint(program)
    assert fingerprint(program) == fingerprint(program.deferred)


def test_fingerprint_follows_the_signature() -> None:
    program = progc.capture(nets.KeywordInputs(), (), keywords(2.0))
    base, signature = fingerprint(program), program.signature
    assert fingerprint(progc.capture(nets.KeywordInputs(), (), keywords(2.0))) == base
    other = pytree.tree_structure((0,))
    for changes in (
        {"batch_dims": tuple(not dynamic for dynamic in signature.batch_dims)},
        {"shapes": (*signature.shapes[:-1], (7,))},
        {"in_spec": other},
        {"out_specs": {**signature.out_specs, "train": other}},
    ):
        assert fingerprint(program.replace(signature=dataclasses.replace(signature, **changes))) != base, changes
    assert fingerprint(program.replace(example=((), keywords(3.0)))) != base, "a constant of the inputs"
    graph = copy_graph(program.graphs["eval"])
    next(node for node in graph.nodes if node.op == "placeholder").meta["batch_range"] = (3, 5)
    assert fingerprint(program.replace(graphs={**program.graphs, "eval": graph})) != base


def keywords(scale: float) -> dict[str, Any]:
    return {"batch": {"tokens": {"ids": torch.tensor([[1, 2]]), "extra": torch.ones(1, 2, 6)}}, "scale": scale}


def test_every_operand_that_is_written_to_is_found() -> None:
    """Two of one operation, those in a list, and a view; not what is only read."""
    graph = torch.fx.Graph()
    given = [graph.placeholder(name) for name in ("scale", "zero", "read", "listed", "other", "base")]
    scale, zero, read, listed, other, base = given
    call = graph.call_function
    call(torch.ops.aten.frexp.Tensor_out, (read,), {"mantissa": scale, "exponent": zero})
    call(torch.ops.aten._foreach_mul_.Scalar, ([listed, other], 2.0))
    view = call(torch.ops.aten.select.int, (base, 0, 0))
    call(torch.ops.aten.add_.Tensor, (view, read))
    assert written_to(graph) >= {"scale", "zero", "listed", "other", "base", view.name}
    assert "read" not in written_to(graph)
