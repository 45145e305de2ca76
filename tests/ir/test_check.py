"""The float64 check: what it computes, what it survives, and that it writes to nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import progc
from progc.errors import CheckError, InputError
from progc.ir.check import Difference, compare, compare_train, example_inputs, run_float64, stochastic
from progc.ir.graphs import copy_graph
from progc.ir.program import Program
from progc.ir.verify import verify
from progc.pipeline.manager import apply
from tests import nets, zoo
from tests.toy_passes import AddBias, copied

EXACT = Difference(0.0, 0.0, True)


def conv() -> Program:
    return progc.capture(nets.ConvNet(), (torch.randn(4, 3, 8, 8),))


def scaled(program: Program, name: str, factor: float) -> Program:
    tensor = program.tensors[name].detach() * factor
    return program.replace(tensors={**program.tensors, name: nn.Parameter(tensor)})


def test_a_program_equals_itself_and_a_faithful_change() -> None:
    program = conv()
    assert compare(program, program, seed=0) == EXACT
    assert compare(program, apply(program, [AddBias()]), seed=0) == EXACT


def test_sizes_of_a_difference() -> None:
    program = progc.capture(nn.Linear(4, 3, bias=False), (torch.randn(2, 4),))
    x = example_inputs(program, 5, 1)[0]
    largest = F.linear(x, program.tensors["weight"].double()).abs().max().item()
    assert compare(program, scaled(program, "weight", 2.0), seed=5) == Difference(largest, 1.0, True)


def test_a_difference_below_float32_is_seen() -> None:
    program = conv()
    tensors = {name: t.detach().double() if t.is_floating_point() else t for name, t in program.tensors.items()}
    tensors["head.weight"] = tensors["head.weight"] * (1 + 1e-10)
    found = compare(program, program.replace(tensors=tensors), seed=0)
    assert 1e-12 < found.max_rel < 1e-9


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_and_inf_are_not_finite(value: float, side: int) -> None:
    program = conv()
    pair = [program, program]
    pair[side] = scaled(program, "head.bias", value)
    assert compare(pair[0], pair[1], seed=0) == Difference(math.inf, math.inf, False)


class HardCoded(nn.Module):
    """Casts to small dtypes in all the ways that a graph can carry."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("table", torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x.to(torch.float32) @ self.weight).float() + torch.arange(6, dtype=torch.float32) / 7
        y = y.half().to(torch.bfloat16).float() + torch.zeros(6, dtype=torch.float16) + torch.full((6,), 1 / 3)
        y = y + torch.arange(0, 0.6, 0.1)[:6] + torch.linspace(0, 1, 6) + self.table.to(x.dtype)
        y = F.softmax(y, dim=-1, dtype=torch.float32) + y.sum(-1, keepdim=True, dtype=torch.float32)
        return y @ self.weight


def test_hard_coded_dtypes_do_not_bring_the_check_back_to_float32() -> None:
    model = HardCoded()
    program = progc.capture(model, (torch.randn(2, 6),))
    x = example_inputs(program, 0)[0]
    weight, table = model.weight.detach().double(), model.table.double()
    steps = torch.arange(6, dtype=torch.float64)
    y = x @ weight + steps / 7 + 1 / 3 + steps / 10 + steps / 5 + table
    y = F.softmax(y, dim=-1) + y.sum(-1, keepdim=True)
    (found,), _ = run_float64(program, "eval", [x])
    assert found.dtype == torch.float64
    assert torch.allclose(found, y @ weight, rtol=1e-12, atol=1e-12)


class WritesInPlace(nn.Module):
    """Writes to its input, to a parameter's value and to buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        self.steps.add_(1)
        self.total.add_(x.detach().sum(0))
        return x * self.scale + self.total * self.steps


def test_nothing_of_a_program_is_written_to() -> None:
    program = progc.capture(WritesInPlace(), (torch.randn(2, 3, dtype=torch.float64),))
    tensors = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    example = copy.deepcopy(program.example)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    x = example_inputs(program, 0)
    given = x[0].clone()
    (found,), buffers = run_float64(program, "train", x)
    assert torch.equal(found, given * 2 + (given * 2).sum(0))
    assert buffers["steps"] == 1 and torch.equal(buffers["total"], (given * 2).sum(0))
    assert compare(program, program, seed=1) == compare_train(program, program, seed=1) == EXACT
    assert torch.equal(given, x[0]) and torch.equal(example[0][0], program.example[0][0])
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in program.tensors.items())
    assert torch.equal(state, torch.get_rng_state()) and dtype == torch.get_default_dtype()


def test_inputs_are_drawn_or_taken() -> None:
    program = progc.capture(nets.TiedWeights(), (torch.randint(11, (2, 5)),))
    ids = program.example[0][0]
    assert torch.equal(example_inputs(program, 0)[0], ids)
    assert torch.equal(example_inputs(program, 0, 3)[0], ids[[0, 1, 0]])
    drawn = [example_inputs(conv(), seed, 2)[0] for seed in (0, 0, 1)]
    assert drawn[0].shape == (2, 3, 8, 8) and drawn[0].dtype == torch.float64
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


class TakesPairs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] // 2, 2, -1).sum(1)


def test_a_network_that_takes_no_single_sample_gets_the_example_batch() -> None:
    program = progc.capture(TakesPairs(), (torch.randn(4, 6),))
    assert compare(program, program, seed=0) == EXACT


def test_train_mode_compares_statistics() -> None:
    program = conv()
    assert compare_train(program, program, seed=0) == EXACT
    graph = copy_graph(program.graphs["train"])
    norm = next(node for node in graph.nodes if "batch_norm" in str(node.target))
    momentum = 6
    assert norm.args[momentum] == 0.1
    norm.update_arg(momentum, 0.2)
    changed = program.replace(graphs={**program.graphs, "train": graph})
    assert compare(program, changed, seed=0) == EXACT
    assert compare_train(program, changed, seed=0).max_abs > 1e-3
    assert compare_train(program, changed, seed=0, buffers={}) == EXACT
    name = "grouped_norm.running_mean"
    assert compare_train(program, changed, seed=0, buffers={name: name}) == EXACT


class Dropped(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.drop, self.probability = nn.Dropout(probability), probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.drop(x)[:, None]
        return F.scaled_dot_product_attention(q, q, q, dropout_p=self.probability if self.training else 0.0)


def test_dropout_of_zero_is_not_random() -> None:
    quiet, noisy = (progc.capture(Dropped(p), (torch.randn(2, 4, 6),)) for p in (0.0, 0.5))
    assert stochastic(quiet.graphs["train"]) == stochastic(noisy.graphs["eval"]) == []
    assert len(stochastic(noisy.graphs["train"])) == 2
    assert compare_train(quiet, quiet, seed=0) == EXACT
    with pytest.raises(
        InputError, match=r"node `dropout`, aten.dropout.default\(%x, 0.5, True\), draws random numbers"
    ):
        compare_train(quiet, noisy, seed=0)


def test_failures_name_the_node() -> None:
    program = conv()
    wrong = program.replace(tensors={**program.tensors, "head.weight": nn.Parameter(torch.zeros(5, 17))})
    with pytest.raises(CheckError, match="float64 check, eval graph, node `linear`, aten.linear.default") as raised:
        compare(program, wrong, seed=0)
    assert "\n" not in str(raised.value)
    wide = scaled(program, "head.bias", 1.0)
    tensors = {
        **wide.tensors,
        "head.weight": nn.Parameter(torch.zeros(6, 16)),
        "head.bias": nn.Parameter(torch.zeros(6)),
    }
    with pytest.raises(CheckError, match=r"output 0: expected f64\[1, 5\], found f64\[1, 6\]"):
        compare(program, wide.replace(tensors=tensors), seed=0, batch=1)


def test_nothing_to_compare_is_an_error() -> None:
    class Index(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(-1)

    program = progc.capture(Index(), (torch.randn(2, 4),))
    with pytest.raises(CheckError, match="expected a floating-point output to compare, found none"):
        compare(program, program, seed=0)


# These compute time steps or rotary angles in float32 whatever the dtype of the module; the check does not.
FLOAT32_INSIDE = {"diffusers:dit", "diffusers:unet", "transformers:llama"}


@pytest.mark.parametrize("name", zoo.swept(zoo.NAMES))
def test_captured_networks_verify_and_run_in_float64_as_their_modules_do(name: str) -> None:
    model, program = zoo.captured(name)
    verify(copied(program), "copy", before=program)
    inputs = example_inputs(program, 0)
    found, _ = run_float64(program, "eval", inputs)
    twin = copy.deepcopy(model).double().eval()
    args, kwargs = torch.utils._pytree.tree_unflatten([leaf.clone() for leaf in inputs], program.signature.in_spec)
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(twin(*args, **kwargs))
    for a, b in zip(found, wanted, strict=False):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape:
            assert a.dtype in (torch.float64, torch.int64, torch.bool)
            tolerance = 1e-5 if name in FLOAT32_INSIDE else 1e-9
            assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)
