"""What is counted is what a real step does and what the formulas of the layers say; batches scale it."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.analysis.costs import counting
from progc.analysis.costs.counting import NotCounted, count, step_of
from progc.errors import InputError
from progc.ir.graphs import copy_graph
from progc.ir.program import Program
from progc.schedule import StageCost
from progc.transforms.freezing import set_trainable
from tests.analysis.costs.real import copied, flops, peak_bytes, saved_bytes
from tests.nets import ConvNet
from tests.zoo import captured

VIT = "timm:vit_tiny_patch16_224@64"
WIDTH, BLOCKS, HEADS, TOKENS, CLASSES = 48, 4, 3, 17, 10


def frozen(program: Program, options: str) -> Program:
    return progc.apply(program, f"freeze{{{options} measure=false}}")


# --- floating-point operations ------------------------------------------------------------------------------------


def block_flops() -> tuple[int, int]:
    """Of one block and sample: its four linear layers, and its attention."""
    linear = 2 * TOKENS * (WIDTH * 3 * WIDTH + WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH)
    return linear, 2 * 2 * TOKENS**2 * WIDTH


def test_flops_are_those_of_the_formulas() -> None:
    batch = 5
    cost = count(captured(VIT)[1], batch=batch)
    linear, attention = block_flops()
    patches, head = 2 * (TOKENS - 1) * 3 * 16 * 16 * WIDTH, 2 * WIDTH * CLASSES
    assert cost.forward_flops == batch * (patches + BLOCKS * (linear + attention) + head)
    # Gradients of inputs and weights, but none of the image; the fused attention computes its scores once more.
    assert cost.backward_flops == batch * (patches + 2 * (BLOCKS * linear + head) + BLOCKS * attention * 5 // 2)


def test_interleaved_freezing_saves_the_gradients_of_the_weights_and_no_more() -> None:
    program = captured(VIT)[1]
    full, now = count(program), count(frozen(program, "level=1"))
    linear, _ = block_flops()
    assert full.backward_flops - now.backward_flops == full.batch * 3 * linear
    assert now.forward_flops == full.forward_flops


def test_a_closed_prefix_ends_the_backward() -> None:
    program = captured(VIT)[1]
    full, now = count(program), count(frozen(program, "prefix=3 stem=true"))
    linear, attention = block_flops()
    head = 2 * WIDTH * CLASSES
    assert now.backward_flops == full.batch * (2 * (linear + head) + attention * 5 // 2)
    assert now.activation_bytes < 0.3 * full.activation_bytes
    assert now.gradient_bytes * 2 == now.optimizer_bytes < full.optimizer_bytes


@pytest.mark.parametrize("name", [VIT, "timm:resnet18@64", "diffusers:dit", "own:einsum", "own:flat"])
def test_flops_are_those_of_torchs_counter_on_a_real_step(name: str) -> None:
    program = copied(captured(name)[1])
    cost, (forward, backward) = count(program), flops(program)
    assert cost.forward_flops == forward
    recomputed = sum(o.flops * n for o, n in step_of(program).forward.items() if o.kind == "attention") // 2
    if name != "own:flat":  # torch's counter takes the gradient of a depthwise kernel for a dense one's
        assert cost.backward_flops == backward + recomputed
    else:
        assert cost.backward_flops < backward


def test_grouped_convolutions_cost_what_their_groups_cost() -> None:
    """Each half of the channels through a convolution of its own does the same arithmetic."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.parts = nn.ModuleList(nn.Conv2d(4, 6, 3) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.cat([part(half) for part, half in zip(self.parts, x.chunk(2, 1), strict=True)], 1)

    whole = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2))
    image = (torch.randn(2, 3, 9, 9),)
    one, two = count(progc.capture(whole, image)), count(progc.capture(Halves(), image))
    assert (one.forward_flops, one.backward_flops) == (two.forward_flops, two.backward_flops)


# --- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "prefix=1 stem=true", "level=1 of=2"])
@pytest.mark.parametrize("name", [VIT, "timm:resnet18@64", "diffusers:dit", "own:flat"])
def test_activations_are_exactly_what_autograd_saves(name: str, options: str) -> None:
    program = captured(name)[1]
    program = copied(frozen(program, options) if options else program)
    assert count(program).activation_bytes == saved_bytes(program) > 0


def test_state_is_counted_once_per_tied_tensor_and_by_its_type() -> None:
    model = ConvNet().bfloat16()
    program = progc.capture(model, (torch.randn(2, 3, 16, 16, dtype=torch.bfloat16),))
    held = sum(parameter.numel() for parameter in model.parameters())
    cost = count(frozen(program, "train=head"), optimizer_states=1)
    trained = sum(parameter.numel() for parameter in model.head.parameters())
    assert (cost.parameters, cost.parameter_bytes) == (held, 2 * held)
    assert (cost.trainable, cost.gradient_bytes, cost.optimizer_bytes) == (trained, 2 * trained, 2 * trained)
    tied = count(captured("own:tied")[1])
    assert tied.parameters == captured("own:tied")[1].num_parameters() == tied.parameter_bytes // 4


@pytest.mark.parametrize("options", ["", "prefix=3 stem=true", "level=1"])
def test_memory_is_near_the_peak_of_a_real_step(options: str) -> None:
    program = captured(VIT)[1]
    program = copied(frozen(program, options) if options else program)
    ratio = count(program).memory / peak_bytes(program)
    assert 0.85 < ratio < 1.15, ratio


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [VIT, "timm:resnet18@64", "diffusers:dit", "own:einsum"])
def test_operations_and_bytes_follow_the_batch(name: str) -> None:
    program = captured(name)[1]
    two, four, six = (count(program, batch=batch) for batch in (2, 4, 6))
    assert count(program) == two and four.batch == 4
    assert four.forward_flops == 2 * two.forward_flops and six.backward_flops == 3 * two.backward_flops
    assert six.activation_bytes - four.activation_bytes == four.activation_bytes - two.activation_bytes
    # Statistics of normalisations do not follow the batch, nor do weights in another layout.
    assert 0 <= 2 * two.activation_bytes - four.activation_bytes < 0.1 * two.activation_bytes
    assert (four.parameter_bytes, four.optimizer_bytes) == (two.parameter_bytes, two.optimizer_bytes)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.reshape(3, 4))


def test_a_fixed_batch_is_counted_as_it_is() -> None:
    cost = count(progc.capture(Fixed(), (torch.randn(3, 4),)), batch=64)
    assert cost.batch == 3 and cost.forward_flops == 2 * 3 * 4 * 4


class Branches(Fixed):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[0] <= 8 else self.body(x) * 2


def test_a_batch_that_the_network_does_not_take_is_refused() -> None:
    program = progc.capture(Branches(), (torch.randn(2, 4),))
    assert count(program, batch=8).batch == 8
    with pytest.raises(InputError, match=r"captured for a batch size from \d to 8, got 9; choose one"):
        count(program, batch=9)
    for wrong in (0, True, 2.5):
        with pytest.raises(InputError, match=r"batch: expected an integer of at least 1, got"):
            count(program, batch=wrong)  # type: ignore[arg-type]


# --- no values ------------------------------------------------------------------------------------------------------


def test_nothing_is_read_and_nothing_changes() -> None:
    module, program = captured("timm:resnet18@64")
    before = {name: tensor.clone() for name, tensor in program.tensors.items()}
    state = torch.random.get_rng_state()
    cost = count(program.deferred)
    assert cost == count(program) and isinstance(cost, StageCost) and cost.seconds is None
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], tensor) and tensor.grad is None for name, tensor in program.tensors.items())


def test_what_cannot_be_counted_is_said() -> None:
    program = progc.capture(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), (torch.randn(2, 3),))
    graph = copy_graph(program.graphs["train"])
    first = next(node for node in graph.nodes if node.op == "call_function")
    with graph.inserting_after(first):
        graph.call_function(torch.ops.aten.item.default, (first,))
    with pytest.raises(NotCounted):
        count(program.replace(graphs={**program.graphs, "train": graph}))
    with pytest.raises(NotCounted, match="no output depends on a trainable parameter"):
        count(set_trainable(program, set()))


def test_a_step_is_counted_once_for_a_graph_and_what_trains_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights do not count; another trainable set, batch or rate of dropout does."""
    runs: list[Program] = []
    real = counting._step
    monkeypatch.setattr(counting, "_step", lambda program, batch: runs.append(program) or real(program, batch))
    monkeypatch.setattr(counting, "_known", collections.OrderedDict())

    def network(rate: float = 0.1) -> Program:
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(rate), nn.Linear(8, 2))
        return progc.capture(model, (torch.randn(2, 4),))

    first = step_of(network())
    assert step_of(network()) is first and len(runs) == 1
    fixed = set_trainable(network(), ["2.weight", "2.bias"])
    assert step_of(fixed) != first and step_of(network(), 5) != first and len(runs) == 3
    step_of(network(0.2))
    assert len(runs) == 4
