"""Inner products of per-sample gradients against a loop of backwards over the user's own module."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.search.proxies import per_sample
from progc.search.proxies.local import SharedUse
from progc.search.proxies.running import Network
from progc.search.proxies.sample_dims import find_samples
from tests.search.proxies import networks
from tests.sweeps import some

SEPARATE = [
    "dropped",
    "torchvision:vit",
    "diffusers:dit",
    "diffusers:unet",
    "transformers:gpt2",
    "own:einsum",
    "own:flat",
    "own:tied",
]
COUPLED = ["own:conv", "timm:resnet18@64"]


def difference(name: str, of: str, pipeline: str = "", one_by_one: bool = False) -> tuple[float, str]:
    """Largest error relative to the largest inner product, and why a backward per sample was needed."""
    model, program, batch = networks.case(name)
    program = networks.frozen(program, pipeline) if pipeline else program
    wanted = networks.trainable(program)
    network = Network(program, networks.task())
    found = per_sample.kernel(network, batch, of=of, wanted=wanted, seed=3, one_by_one=one_by_one)
    expected = networks.naive_kernel(model, batch, wanted, of, 3)
    assert float(expected.abs().max()) > 0
    return float((found.matrix - expected).abs().max() / expected.abs().max()), found.coupled


@pytest.mark.parametrize("name", some(SEPARATE, ("dropped", "transformers:gpt2", "own:einsum", "own:flat", "own:tied")))
def test_one_backward_gives_what_a_loop_gives(name: str) -> None:
    error, coupled = difference(name, "loss")
    assert error < 1e-5 and coupled == ""


@pytest.mark.parametrize("name", some(["dropped", "diffusers:dit", "diffusers:unet"], ["dropped", "diffusers:dit"]))
def test_of_the_outputs_as_published(name: str) -> None:
    error, coupled = difference(name, "outputs")
    assert error < 1e-5 and coupled == ""


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("of", ["loss", "outputs"])
def test_batch_statistics_need_a_backward_per_sample(name: str, of: str) -> None:
    error, coupled = difference(name, of)
    assert error < 1e-5 and "statistics of the batch" in coupled


@pytest.mark.parametrize("pipeline", ["freeze{prefix=1 stem=true}", "freeze{level=1 of=3}", "freeze{only=attention}"])
@pytest.mark.parametrize("name", ["dropped", "diffusers:dit"])
def test_the_trainable_set_decides(name: str, pipeline: str) -> None:
    error, coupled = difference(name, "loss", pipeline)
    assert error < 1e-5 and coupled == ""


def test_frozen_batch_norms_do_not_couple() -> None:
    _, program, batch = networks.case("own:conv")
    program = networks.frozen(program, "freeze{only=head}")
    network = Network(program, networks.task())
    wanted = networks.trainable(program)
    one, loop = (
        per_sample.kernel(network, batch, of="loss", wanted=wanted, seed=0, one_by_one=asked) for asked in (False, True)
    )
    assert one.coupled == "" and loop.coupled
    assert float((one.matrix - loop.matrix).abs().max() / loop.matrix.abs().max()) < 1e-5


def test_parameters_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "_BYTES", 10_000)
    error, _ = difference("own:conv", "loss")
    assert error < 1e-5


def test_a_planted_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of many counted twice."""
    original = SharedUse.add_products

    def doubled(self: SharedUse, shared: torch.fx.Node, add: object, products: object) -> None:
        original(self, shared, add, products)  # type: ignore[arg-type]
        if shared.target == "blocks.1.attn.proj.weight":
            original(self, shared, add, products)  # type: ignore[arg-type]

    assert difference("dropped", "loss")[0] < 1e-5
    monkeypatch.setattr(SharedUse, "add_products", doubled)
    assert difference("dropped", "loss")[0] > 1e-4


# --- networks in which samples meet ---------------------------------------------------------------------------------


class Meeting(nn.Module):
    """Samples meet in the middle; the head may be zero, as networks are initialised."""

    def __init__(self, kind: str, head: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        if not head:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        if self.kind == "mean":
            y = y - y.mean(0)
        if self.kind == "sum so far":
            y = y.cumsum(0)
        if self.kind == "roll":
            y = y.roll(1, 0) * y
        if self.kind == "softmax":
            y = F.softmax(y, 0)
        return self.last(y)


@pytest.mark.parametrize("kind", ["mean", "sum so far", "roll", "softmax"])
@pytest.mark.parametrize("head", [True, False])
def test_samples_that_meet_are_noticed(kind: str, head: bool) -> None:
    model = Meeting(kind, head)
    program = progc.capture(model, (torch.randn(4, 6),))
    network = Network(program, networks.task())
    batch = ((torch.randn(5, 6, generator=torch.Generator().manual_seed(2)),), {})
    wanted = networks.trainable(program)
    found = per_sample.kernel(network, batch, of="loss", wanted=wanted, seed=0)
    expected = networks.naive_kernel(model, batch, wanted, "loss", 0)
    assert found.coupled
    torch.testing.assert_close(found.matrix, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Shared(nn.Module):
    """Parameters that are worked on before samples meet them, one of them used three times, one behind no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.direction, self.length = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.rand(6, 1) + 0.5)
        self.places = nn.Parameter(torch.randn(1, 4, 6))
        self.still = nn.Parameter(torch.randn(6))
        self.table = nn.Embedding(9, 6, padding_idx=2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        weight = self.length * self.direction / self.direction.norm(dim=1, keepdim=True)
        y = F.linear(self.table(ids) + self.places + x, weight)
        y = torch.cat([self.places[:, :1].expand(x.shape[0], -1, -1), torch.tanh(y) * self.places.mean(1)], dim=1)
        with torch.no_grad():
            shift = self.still * 2
        return F.linear(y + shift, self.direction).flatten(0, 1).view(x.shape[0], -1)


def test_shared_values_are_carried_back_to_their_parameters() -> None:
    torch.manual_seed(0)
    model = Shared()
    ids = torch.randint(9, (3, 4))
    program = progc.capture(model, (ids, torch.randn(3, 4, 6)))
    batch = networks.batch_of(((ids, torch.randn(3, 4, 6)), {}), 5)
    wanted = networks.trainable(program)
    found = per_sample.kernel(Network(program, networks.task()), batch, of="outputs", wanted=wanted, seed=0)
    expected = networks.naive_kernel(model, batch, wanted, "outputs", 0)
    assert found.coupled == ""
    torch.testing.assert_close(found.matrix, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Complex(nn.Module):
    """A complex parameter beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(6, dtype=torch.complex64))
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh((x * self.turn).abs()))


def test_complex_parameters_count_with_both_of_their_parts() -> None:
    torch.manual_seed(0)
    model, x = Complex(), torch.randn(3, 6)
    program = progc.capture(model, (x[:2],))
    found = per_sample.kernel(
        Network(program, networks.task()), ((x,), {}), of="outputs", wanted=networks.trainable(program), seed=0
    )
    rows = []
    for row in model(x):
        gradients = torch.autograd.grad(row.sum(), list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([torch.view_as_real(g).flatten() if g.is_complex() else g.flatten() for g in gradients]))
    expected = (torch.stack(rows) @ torch.stack(rows).T).double()
    assert "turn is complex" in found.coupled
    torch.testing.assert_close(found.matrix, expected, rtol=1e-5, atol=1e-5)


def test_looking_for_samples_does_not_keep_graphs() -> None:
    program = progc.capture(Meeting("none"), (torch.randn(4, 6),))
    kept = weakref.ref(program.graphs["train"])
    assert find_samples(program).dims
    del program
    gc.collect()
    assert kept() is None


def test_a_fixed_batch_is_taken_one_by_one() -> None:
    model = Meeting("none")
    program = progc.capture(model, (torch.randn(1, 6).expand(3, -1).contiguous(),))
    fixed = program.replace(signature=dataclasses.replace(program.signature, batch_dims=(False,)))
    batch = ((torch.randn(3, 6),), {})
    found = per_sample.kernel(Network(fixed, networks.task()), batch, of="loss", wanted={"first.weight"}, seed=0)
    expected = networks.naive_kernel(model, batch, {"first.weight"}, "loss", 0)
    assert "batch size is fixed" in found.coupled
    torch.testing.assert_close(found.matrix, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_program_with_a_stage_input() -> None:
    _, program, batch = networks.case("diffusers:dit")
    staged = progc.apply(program, "inject-sid{init=normal dropout=0.5}")
    wanted = networks.trainable(staged)
    kernels = {
        stage: per_sample.kernel(Network(staged, networks.task(), stage), batch, of="loss", wanted=wanted, seed=1)
        for stage in (0, 2, None)
    }
    assert all(found.coupled == "" for found in kernels.values())
    loop = per_sample.kernel(
        Network(staged, networks.task(), 2), batch, of="loss", wanted=wanted, seed=1, one_by_one=True
    )
    torch.testing.assert_close(kernels[2].matrix, loop.matrix, rtol=1e-5, atol=1e-5 * float(loop.matrix.abs().max()))
    assert not torch.equal(kernels[0].matrix, kernels[2].matrix)
