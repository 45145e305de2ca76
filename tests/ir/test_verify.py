"""One deliberately broken pass per invariant of the verifier; a message names pass, node, expected and found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

import progc
from progc.errors import VerifyError
from progc.ir.graphs import propagate
from progc.ir.program import MODES, Program, TensorMeta, TensorSpec
from progc.ir.verify import verify
from progc.pipeline.manager import apply
from tests import nets
from tests.toy_passes import broken, copied

Edit = Callable[[Program], Program]


def conv() -> Program:
    return progc.capture(nets.ConvNet(), (torch.randn(2, 3, 8, 8),))


def einsum() -> Program:
    return progc.capture(nets.EinsumTransformer(), (torch.randn(2, 6, 10),))


def tied() -> Program:
    return progc.capture(nets.TiedWeights(), (torch.randint(11, (2, 5)),))


def pair() -> Program:
    return progc.capture(nets.StructuredOutput(), (torch.randn(2, 6),))


def frozen() -> Program:
    program = conv()
    return with_tensor(program, "head.weight", nn.Parameter(program.tensors["head.weight"].detach(), False))


class Views(nn.Module):
    """Parameters that are views of one storage: interleaved columns of a matrix, and the halves of a vector."""

    def __init__(self) -> None:
        super().__init__()
        matrix, vector = torch.randn(6, 8), torch.randn(12)
        self.left, self.right = nn.Parameter(matrix[:, :5]), nn.Parameter(matrix[:, 5:])
        self.shift, self.gain = nn.Parameter(vector[:6]), nn.Parameter(vector[6:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :5] @ self.left.t() + x[:, 5:] @ self.right.t()) * self.gain + self.shift


def views() -> Program:
    return progc.capture(Views(), (torch.randn(2, 8),))


class Dented(nn.Module):
    """Leaves a parameter unread, reads another in train mode only, and computes something that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unread = nn.Linear(6, 6), nn.Linear(6, 6)
        self.train_only = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        first, _, _ = y.unbind(1)[:3]
        return self.train_only(y) + first[:, None] if self.training else y + first[:, None]


def node(program: Program, name: str, mode: str = "eval") -> fx.Node:
    return next(item for item in program.graphs[mode].nodes if item.name == name)  # type: ignore[index]


def with_tensor(program: Program, name: str, tensor: torch.Tensor) -> Program:
    return program.replace(tensors={**program.tensors, name: tensor})


def refreshed(program: Program) -> Program:
    """For edits whose shapes are right: only the invariant under test is broken."""
    for mode in MODES:
        propagate(program, program.graphs[mode], mode)
    return program


def spec_without_tensor(program: Program) -> Program:
    return program.replace(specs={**program.specs, "ghost": TensorSpec("parameter")})


def tensor_without_spec(program: Program) -> Program:
    return with_tensor(program, "ghost", torch.zeros(1))


def parameter_becomes_tensor(program: Program) -> Program:
    return with_tensor(program, "head.weight", program.tensors["head.weight"].detach())


def untied(program: Program) -> Program:
    return with_tensor(program, "head.weight", nn.Parameter(torch.zeros(11, 8)))


def tie_forgotten(program: Program) -> Program:
    return untied(program).replace(tied={})


def secretly_tied(program: Program) -> Program:
    return program.replace(tied={})


def tied_to_nothing(program: Program) -> Program:
    return program.replace(tied={"head.weight": "ghost"})


def tied_to_an_alias(program: Program) -> Program:
    return program.replace(tied={**program.tied, "mix.bias": "head.weight"})


def used_before_made(program: Program) -> Program:
    spoilt = copied(program)
    node(spoilt, "relu").prepend(node(spoilt, "conv2d_3"))
    return spoilt


def method_call(program: Program) -> Program:
    spoilt = copied(program)
    graph, linear = spoilt.graphs["eval"], node(spoilt, "linear")
    with graph.inserting_before(linear):
        mean = graph.call_method("contiguous", (node(spoilt, "mean"),))
    linear.args = (mean, *linear.args[1:])
    return spoilt


def unknown_name(program: Program) -> Program:
    spoilt = copied(program)
    node(spoilt, "head_bias").target = "heed.bias"
    return spoilt


def alias_name(program: Program) -> Program:
    spoilt = copied(program)
    next(item for item in spoilt.graphs["eval"].nodes if item.target == "embed.weight").target = "head.weight"
    return spoilt


def fetched_for_nothing(program: Program) -> Program:
    spoilt = copied(program)
    with spoilt.graphs["eval"].inserting_before(node(spoilt, "linear")):
        spoilt.graphs["eval"].get_attr("head.bias")
    return spoilt


def extra_input(program: Program) -> Program:
    spoilt = copied(program)
    with spoilt.graphs["train"].inserting_before(node(spoilt, "conv2d", "train")):
        spoilt.graphs["train"].placeholder("y")
    return spoilt


def other_example(program: Program) -> Program:
    return program.replace(example=((torch.zeros(2, 3, 9, 9),), {}))


def wrong_weight_shape(program: Program) -> Program:
    return with_tensor(program, "head.weight", nn.Parameter(torch.zeros(5, 17)))


def wider_head(program: Program) -> Program:
    grown = copied(with_tensor(program, "head.weight", nn.Parameter(torch.zeros(6, 16))))
    return refreshed(with_tensor(grown, "head.bias", nn.Parameter(torch.zeros(6))))


def stale_metadata(program: Program) -> Program:
    return with_tensor(program, "positions", nn.Parameter(torch.zeros(1, 24)))  # it broadcasts: all else stays


def stale_dtype(program: Program) -> Program:
    spoilt = copied(program)
    node(spoilt, "relu").meta["tensor"] = TensorMeta((2, 16, 4, 4), torch.float64)
    return spoilt


def no_metadata(program: Program) -> Program:
    spoilt = copied(program)
    del node(spoilt, "relu").meta["tensor"]
    return spoilt


def output_lost(program: Program) -> Program:
    spoilt = copied(program)
    last = spoilt.graphs["eval"].output_node()
    last.args = (last.args[0][:2],)  # type: ignore[index]
    return refreshed(spoilt)


def output_structure(program: Program) -> Program:
    spoilt = copied(program)
    for mode in MODES:
        last = spoilt.graphs[mode].output_node()
        last.args = ((last.args[0][0],),)  # type: ignore[index]
        spoilt.graphs[mode].eliminate_dead_code()
    specs = {mode: torch.utils._pytree.tree_flatten(0)[1] for mode in MODES}
    return refreshed(spoilt.replace(signature=dataclasses.replace(spoilt.signature, out_specs=specs)))


def parameter_unread(program: Program) -> Program:
    spoilt = with_tensor(program, "extra", nn.Parameter(torch.zeros(3)))
    return spoilt.replace(specs={**spoilt.specs, "extra": TensorSpec("parameter")})


def parameter_in_one_mode(program: Program) -> Program:
    spoilt = copied(program)
    graph, linear = spoilt.graphs["eval"], node(spoilt, "linear")
    linear.args = linear.args[:2]
    graph.erase_node(node(spoilt, "head_bias"))
    return refreshed(spoilt)


def dead_node(program: Program) -> Program:
    spoilt = copied(program)
    with spoilt.graphs["train"].inserting_before(node(spoilt, "linear", "train")):
        spoilt.graphs["train"].call_function(torch.ops.aten.relu.default, (node(spoilt, "mean", "train"),))
    return refreshed(spoilt)


def baked_batch(program: Program) -> Program:
    spoilt = copied(program)
    for mode in MODES:
        graph, linear = spoilt.graphs[mode], node(spoilt, "linear", mode)
        with graph.inserting_before(linear):
            view = graph.call_function(torch.ops.aten.view.default, (linear.args[0], [2, 16]))
        linear.args = (view, *linear.args[1:])
    return refreshed(spoilt)


def flag_lost(program: Program) -> Program:
    return with_tensor(program, "head.weight", nn.Parameter(program.tensors["head.weight"].detach() * 2))


def one_memory(program: Program) -> Program:
    return with_tensor(program, "shift", nn.Parameter(program.tensors["gain"].detach()))


def common_elements(program: Program) -> Program:
    matrix = torch.randn(6, 8)
    spoilt = with_tensor(program, "left", nn.Parameter(matrix[:, :5]))
    return with_tensor(spoilt, "right", nn.Parameter(matrix.flatten()[4 : 4 + 5 * 8 + 3].as_strided((6, 3), (8, 1))))


def other_structure(program: Program) -> Program:
    spec = torch.utils._pytree.tree_structure(((), {"y": 0}))
    return program.replace(signature=dataclasses.replace(program.signature, in_spec=spec))


def constant_example(program: Program) -> Program:
    return program.replace(example=((3,), {}))


def with_stage(program: Program, dynamic: bool = False) -> Program:
    """Adds an input that nothing reads yet, a scalar."""
    grown = copied(program)
    for mode in MODES:
        first = next(item for item in grown.graphs[mode].nodes if item.op == "placeholder")
        with grown.graphs[mode].inserting_after(first):
            grown.graphs[mode].placeholder("stage")
    example = ((*program.example[0], torch.tensor(1)), {})
    signature = dataclasses.replace(
        program.signature,
        in_spec=torch.utils._pytree.tree_structure(example),
        shapes=(*program.signature.shapes, ()),
        batch_dims=(*program.signature.batch_dims, dynamic),
    )
    return grown.replace(example=example, signature=signature)


def batch_of_a_scalar(program: Program) -> Program:
    return refreshed(with_stage(program, dynamic=True))


def wider_with_stage(program: Program) -> Program:
    return wider_head(with_stage(program))


CASES: list[tuple[Callable[[], Program], Edit, str]] = [
    (conv, spec_without_tensor, "`ghost` has a spec and no tensor; expected both"),
    (conv, tensor_without_spec, "`ghost` has a tensor and no spec; expected both"),
    (conv, parameter_becomes_tensor, "`head.weight`: expected a parameter, found Tensor"),
    (tied, untied, "`head.weight` is tied to `embed.weight`: expected one tensor under both names, found two"),
    (tied, tie_forgotten, "expected `head.weight` to stay tied to `embed.weight`, found two tensors"),
    (tied, secretly_tied, "`head.weight` and `embed.weight` are one tensor; expected `head.weight` to be tied"),
    (tied, tied_to_nothing, "`head.weight` is tied to `ghost`, but the program has no tensor `ghost`"),
    (tied, tied_to_an_alias, "`mix.bias` is tied to `head.weight`, itself an alias; expected `embed.weight`"),
    (conv, used_before_made, "eval graph: Argument 'relu' of Node 'conv2d_3' was used before it has been defined"),
    (
        conv,
        method_call,
        "eval graph, node `contiguous`: expected placeholder, get_attr, call_function or output, found",
    ),
    (
        conv,
        unknown_name,
        "eval graph, node `head_bias`: expected the name of a tensor of the program, found `heed.bias`",
    ),
    (
        tied,
        alias_name,
        "expected the canonical name `embed.weight`, found its alias `head.weight`",
    ),
    (conv, fetched_for_nothing, "eval graph, node `head_bias_1`: `head.bias` is fetched and not used; expected a user"),
    (conv, extra_input, "train graph: expected 1 inputs, found 2 placeholders"),
    (conv, other_example, "input `x`: expected shape (2, 3, 8, 8), found example (2, 3, 9, 9)"),
    (conv, wrong_weight_shape, "node `linear` in head: aten.linear.default(%mean, head.weight, head.bias) cannot take"),
    (conv, wider_head, "train graph, output 0: expected f32[2, 5] as before, found f32[2, 6]"),
    (
        einsum,
        stale_metadata,
        "positions: expected f32[6, 24] as recorded, found f32[1, 24]",
    ),
    (conv, stale_dtype, "node `relu`, aten.relu.default(%conv2d_2): expected f64[2, 16, 4, 4] as recorded, found f32["),
    (conv, no_metadata, "eval graph, node `relu`: expected recorded metadata f32[2, 16, 4, 4], found none"),
    (pair, output_lost, "eval graph: expected 4 outputs, found 2"),
    (pair, output_structure, "train graph: expected 4 outputs as before, found 1"),
    (conv, parameter_unread, "parameter `extra`: expected a graph that reads it, found none"),
    (conv, parameter_in_one_mode, "eval graph: expected it to read parameter `head.bias` as the train graph does"),
    (conv, dead_node, "train graph, node `relu_default`, aten.relu.default(%mean): expected a user, found none"),
    (frozen, flag_lost, "parameter `head.weight` has new values: expected it to stay frozen, but it is trainable"),
    (views, one_memory, "`shift` and `gain` share memory; expected separate memory, or one tied tensor"),
    (views, common_elements, "`left` and `right` share memory; expected separate memory, or one tied tensor"),
    (
        conv,
        other_structure,
        "the structure of the example inputs differs from the signature; expected them to agree",
    ),
    (conv, constant_example, "input `x`: expected shape (2, 3, 8, 8), found example None"),
    (conv, batch_of_a_scalar, "input `stage`: expected a batch dim, found shape ()"),
    (conv, wider_with_stage, "train graph, output 0: expected f32[2, 5] as before, found f32[2, 6]"),
    (conv, baked_batch, "at twice the batch size, train graph, node `view_default`: aten.view.default(%mean, [2, 16])"),
]


@pytest.mark.parametrize(("build", "edit", "message"), CASES, ids=[edit.__name__ for _, edit, _ in CASES])
def test_a_broken_pass_is_caught(build: Callable[[], Program], edit: Edit, message: str) -> None:
    program = build()
    with pytest.raises(VerifyError, match="^after broken: (.*[,:] )?" + re.escape(message)) as raised:
        apply(program, [broken(edit)])
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_a_shape_that_lint_accepts_is_caught() -> None:
    spoilt = wrong_weight_shape(conv())
    spoilt.graphs["eval"].lint()
    with pytest.raises(VerifyError, match=r"head.weight f32\[5, 17\]"):
        verify(spoilt)


def test_what_was_so_before_is_accepted() -> None:
    program = progc.capture(Dented(), (torch.randn(2, 6),))
    verify(program, "same", before=program)


def thawed(program: Program) -> Program:
    return with_tensor(program, "head.weight", nn.Parameter(program.tensors["head.weight"].detach()))


def thawed_copy(program: Program) -> Program:
    return with_tensor(program, "head.weight", nn.Parameter(program.tensors["head.weight"].detach().clone()))


def smaller_image(program: Program) -> Program:
    signature = dataclasses.replace(program.signature, shapes=((2, 3, 6, 6),))
    return refreshed(copied(program.replace(example=((torch.zeros(2, 3, 6, 6),), {}), signature=signature)))


@pytest.mark.parametrize(
    ("build", "edit"),
    [
        (frozen, thawed),
        (frozen, thawed_copy),
        (conv, smaller_image),
        (conv, lambda program: refreshed(with_stage(program))),
        (views, lambda program: with_tensor(program, "shift", nn.Parameter(program.tensors["shift"].detach().clone()))),
    ],
    ids=["thawed", "thawed-copy", "smaller-image", "stage", "views"],
)
def test_what_passes_do_besides_growth_is_sound(build: Callable[[], Program], edit: Edit) -> None:
    """The trainable set, the shapes of inputs and their number change, and parameters may be views of one storage."""
    program = build()
    after = apply(program, [broken(edit)])
    assert after.history[0].before != after.history[0].after or build is views
