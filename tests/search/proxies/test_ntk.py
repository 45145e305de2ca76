"""Condition numbers: the published ones with their defects, and ours."""

from __future__ import annotations

import math

import pytest
import torch

from progc.errors import InputError
from progc.ir.program import Program
from progc.search.proxies.ntk import NTK, log_condition, published_condition
from tests.search.proxies import networks


def condition(matrix: torch.Tensor) -> float:
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])


def test_default_is_minus_the_log_of_the_condition_number_averaged_over_kernels() -> None:
    model, program, batch = networks.case("dropped", torch.float64, 8)
    halves = [networks.pytree.tree_map(lambda leaf, at=at: leaf[at : at + 4], batch) for at in (0, 4)]
    wanted = networks.trainable(program)
    expected = [
        math.log10(condition(networks.naive_kernel(model, half, wanted, "loss", 5 + place)))
        for place, half in enumerate(halves)
    ]
    found = NTK(samples=4, kernels=2).score(program, [batch], networks.task(), seed=5)
    assert found == pytest.approx(-sum(expected) / 2, rel=1e-5)


def test_of_a_network_with_batch_statistics() -> None:
    model, program, batch = networks.case("own:conv", torch.float64)
    expected = condition(networks.naive_kernel(model, batch, networks.trainable(program), "loss", 0))
    found = NTK(samples=4, kernels=1).score(program, [batch], networks.task(), seed=0)
    assert found == pytest.approx(-math.log10(expected), rel=1e-5)


def test_reference_takes_weights_outputs_and_batches_as_published() -> None:
    model, program, batch = networks.case("diffusers:dit", torch.float64)
    other = networks.pytree.tree_map(lambda leaf: leaf.flip(0), batch)
    program = networks.frozen(program, "freeze{level=1 of=2}")
    wanted = {name for name in networks.trainable(program) if "weight" in name}
    assert wanted < networks.trainable(program)
    conditions = [
        condition(networks.naive_kernel(model, one, wanted, "outputs", seed)) for seed, one in ((0, batch), (1, other))
    ]
    found = NTK(mode="reference").score(program, [batch, other], networks.task(), seed=0)
    assert found == pytest.approx(-sum(conditions) / 2, rel=1e-5)


def test_a_slightly_negative_eigenvalue_is_best_as_published_and_worst_with_us() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.5, -1e-9], dtype=torch.float64))
    assert -published_condition(matrix) == pytest.approx(1e9)
    assert log_condition(matrix, 1e-7) == pytest.approx(-math.log10(3e-7))
    assert log_condition(torch.eye(3, dtype=torch.float64), 1e-7) == 0.0


def test_numbers_that_are_none() -> None:
    broken = torch.full((2, 2), math.nan, dtype=torch.float64)
    assert math.isnan(log_condition(broken, 1e-7))
    assert log_condition(torch.zeros(2, 2, dtype=torch.float64), 1e-7) == math.inf
    assert published_condition(broken) == 0.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "referense"}, "unknown mode `referense`; did you mean reference?"),
        ({"samples": 1}, "samples: expected a number of at least 2, got 1"),
        ({"kernels": 0}, "kernels: expected a number of at least 1, got 0"),
        ({"of": "logits"}, "of: expected loss or outputs, got `logits`"),
    ],
)
def test_options_are_checked(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text.replace("?", r"\?")):
        NTK(**options)  # type: ignore[arg-type]


def test_too_few_samples_and_nothing_to_measure() -> None:
    _, program, batch = networks.case("own:conv", torch.float64)
    with pytest.raises(InputError, match="expected at least 8 samples, got 4; give more or larger batches"):
        NTK().score(program, [batch], networks.task(), seed=0)
    still = program.replace(tensors={name: tensor.detach() for name, tensor in program.tensors.items()})
    with pytest.raises(InputError, match="no parameter that it measures trains in .*; unfreeze some"):
        NTK(samples=4).score(still, [batch], networks.task(), seed=0)


def unfrozen(program: Program, level: int) -> float:
    _, _, batch = networks.case("own:flat", samples=16)
    return NTK().score(networks.frozen(program, f"freeze{{level={level}}}"), [batch], networks.task(), seed=0)


def test_levels_of_one_network_are_told_apart() -> None:
    _, program, _ = networks.case("own:flat", samples=16)
    assert len({unfrozen(program, level) for level in (1, 2, 3, 4)}) == 4
