"""Every proxy leaves the program and the random generators as they were, and repeats itself."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import progc
from progc.ir.program import Program
from progc.search.proxies import PROXIES, load_proxy
from tests.search.proxies import networks

MODELS = ["dropped", "own:conv", "diffusers:dit"]


def state(program: Program) -> dict[str, tuple[torch.Tensor, int, bool, bool]]:
    """Values, versions, gradients and trainability of all tensors."""
    return {
        name: (tensor.detach().clone(), tensor._version, tensor.grad is None, tensor.requires_grad)
        for name, tensor in program.tensors.items()
    }


# Every proxy on every network, and in both modes on the first one, for each commit.
CASES = [
    pytest.param(model, name, mode, marks=[pytest.mark.slow] if mode == "reference" and model != MODELS[0] else [])
    for model in MODELS
    for name in PROXIES
    for mode in ("default", "reference")
]


@pytest.mark.parametrize(("model", "name", "mode"), CASES)
def test_nothing_is_changed_and_scores_repeat(model: str, name: str, mode: str) -> None:
    _, program, batch = networks.case(model, samples=16)
    halves = [networks.pytree.tree_map(lambda leaf, at=at: leaf[at : at + 8], batch) for at in (0, 8)]
    before, generator = state(program), torch.get_rng_state()
    proxy = load_proxy(name)(mode=mode)  # type: ignore[call-arg]
    score = proxy.score(program, halves, networks.task(), seed=9)
    after = state(program)
    for key, (value, *rest) in before.items():
        assert torch.equal(value, after[key][0]) and rest == list(after[key][1:]), key
    assert torch.equal(generator, torch.get_rng_state())
    torch.rand(3)  # another place in the sequence
    assert math.isfinite(score)
    assert proxy.score(program, halves, networks.task(), seed=9) == score


@pytest.mark.parametrize("name", PROXIES)
def test_which_proxies_tell_trainable_sets_apart(name: str) -> None:
    _, program, batch = networks.case("own:flat", samples=16)
    proxy = load_proxy(name)()
    programs = [networks.frozen(program, f"freeze{{level={level}}}") for level in (1, 2)]
    scores = [proxy.score(one, [batch], networks.task(), seed=0) for one in programs]
    assert (scores[0] != scores[1]) is proxy.ranks_unfreezing


@pytest.mark.parametrize("name", PROXIES)
def test_the_stage_reaches_the_network(name: str) -> None:
    _, program, batch = networks.case("own:flat", samples=16)
    staged = progc.apply(program, "inject-sid{init=normal dropout=0.0 seed=1}")
    table = staged.tensors["stage_embedding.weight"]
    rows = torch.nn.Parameter(100 * table.detach())
    staged = staged.replace(tensors={**staged.tensors, "stage_embedding.weight": rows})
    proxy = load_proxy(name)()
    scores = [proxy.score(staged, [batch], networks.task(), seed=0, stage=stage) for stage in (0, 1, None)]
    assert len(set(scores)) == 3


def test_batches_are_brought_to_the_size_of_the_program() -> None:
    _, program, batch = networks.case("own:conv", samples=16)
    larger = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    task = dataclasses.replace(networks.task(), inputs=lambda own: ((own,), {}))
    fitted = task.fitted(larger, program)
    assert fitted.shape == (16, 3, 16, 16) and batch[0][0].shape[1:] == fitted.shape[1:]
    for name in PROXIES:
        proxy = load_proxy(name)()
        score = proxy.score(program, [larger], task, seed=0)
        assert score == proxy.score(program, [fitted], task, seed=0)
