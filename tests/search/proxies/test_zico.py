"""ZiCo against gradients that are all kept."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.errors import InputError
from progc.search.proxies.zico import Moments, PairMoments, ZiCo
from tests.search.proxies import networks
from tests.sweeps import some


def cut(batch: Any, size: int) -> list[Any]:
    count = len(pytree.tree_leaves(batch)[0])
    return [pytree.tree_map(lambda leaf, at=at: leaf[at : at + size], batch) for at in range(0, count, size)]


def ratios(gradients: torch.Tensor) -> numpy.ndarray[Any, Any]:
    """mean |g| / std g of the entries that vary; `gradients` is `[batches, ...]`."""
    rows = gradients.flatten(1).numpy()
    spread = rows.std(0)
    return numpy.abs(rows).mean(0)[spread > 0] / spread[spread > 0]


@pytest.mark.parametrize(
    "name",
    some(["dropped", "diffusers:dit", "diffusers:unet", "own:conv", "own:tied"], ["dropped", "own:conv", "own:tied"]),
)
def test_default_is_the_mean_over_parameters(name: str) -> None:
    model, program, batch = networks.case(name, samples=16)
    wanted = {key for key in networks.trainable(program) if program.tensors[key].dim() > 1}
    kept = networks.naive_gradients(model, cut(batch, 2), wanted, 4)
    expected = numpy.mean([numpy.log(ratios(rows).mean()) for rows in kept.values()])
    found = ZiCo().score(program, [batch], networks.task(), seed=4)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == ZiCo().score(program, cut(batch, 2), networks.task(), seed=4)


@pytest.mark.parametrize("name", ["dropped", "diffusers:dit", "own:conv"])
def test_reference_is_the_sum_over_linear_layers_and_convolutions(name: str) -> None:
    model, program, batch = networks.case(name, samples=16)
    kinds = (nn.Linear, nn.Conv2d)
    wanted = {f"{key}.weight" for key, module in model.named_modules() if isinstance(module, kinds)}
    kept = networks.naive_gradients(model, cut(batch, 8), wanted, 0)
    expected = sum(math.log(ratios(rows).sum()) for rows in kept.values())
    found = ZiCo(mode="reference").score(program, cut(batch, 8), networks.task(), seed=0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_reference_grows_with_every_layer_that_is_unfrozen() -> None:
    _, program, batch = networks.case("own:flat", samples=16)
    programs = [networks.frozen(program, f"freeze{{level={level} rest=frozen}}") for level in (1, 2, 3, 4)]
    published = [ZiCo(mode="reference").score(one, cut(batch, 8), networks.task(), seed=0) for one in programs]
    assert published == sorted(published) and published[3] > 3 * published[0] > 0
    ours = [ZiCo().score(one, [batch], networks.task(), seed=0) for one in programs]
    assert max(ours) - min(ours) < 0.5


def test_vectors_count_when_asked_for() -> None:
    model, program, batch = networks.case("dropped", samples=16)
    kept = networks.naive_gradients(model, cut(batch, 2), networks.trainable(program), 0)
    expected = numpy.mean([numpy.log(ratios(rows).mean()) for rows in kept.values()])
    assert ZiCo(vectors=True).score(program, [batch], networks.task(), seed=0) == pytest.approx(expected, rel=1e-5)


def test_one_pass_gives_what_two_give() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 3 + torch.randn(9, 200, generator=generator)
    rows[:, 7] = 2.0  # does not vary
    rows[:, 8] = 0.0
    for kind, count in ((Moments, 9), (PairMoments, 2)):
        moments = kind(rows[0])
        for row in rows[:count]:
            moments.add(row.clone())
        assert moments.finite and len(moments.ratios()) == 198
        numpy.testing.assert_allclose(moments.ratios().numpy(), ratios(rows[:count].double()), rtol=2e-5)


def test_an_error_in_one_layer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, batch = networks.case("own:conv", samples=16)
    before = ZiCo().score(program, [batch], networks.task(), seed=0)
    original = Moments.add

    def shifted(self: Moments, gradient: torch.Tensor) -> None:
        original(self, gradient + 0.01 if gradient.shape[0] == 5 else gradient)

    monkeypatch.setattr(Moments, "add", shifted)
    assert abs(ZiCo().score(program, [batch], networks.task(), seed=0) / before - 1) > 1e-3


def test_gradients_that_are_not_finite_give_nan() -> None:
    _, program, batch = networks.case("own:conv", samples=16)
    task = networks.task()
    infinite = type(task)(samples=[], loss=lambda outputs, own: outputs.sum() * math.nan, inputs=task.inputs)
    assert math.isnan(ZiCo().score(program, [batch], infinite, seed=0))
    assert math.isnan(ZiCo(mode="reference").score(program, cut(batch, 8), infinite, seed=0))


def test_too_few_batches() -> None:
    _, program, batch = networks.case("own:conv", samples=4)
    with pytest.raises(InputError, match="expected at least 8 samples, got 4; give more or larger batches"):
        ZiCo().score(program, [batch], networks.task(), seed=0)
    with pytest.raises(InputError, match="expected at least 2 batches in mode reference, got 1"):
        ZiCo(mode="reference").score(program, [batch], networks.task(), seed=0)
    with pytest.raises(InputError, match="batches: expected a number of at least 2, got 1"):
        ZiCo(batches=1)


def test_a_loss_that_is_no_scalar() -> None:
    _, program, batch = networks.case("own:conv", samples=16)
    task = networks.task()
    rows = type(task)(samples=[], loss=lambda outputs, own: outputs.mean(1), inputs=task.inputs)
    with pytest.raises(
        InputError, match=r"expected a scalar tensor, got a tensor of shape \[2\]; return the mean loss over"
    ):
        ZiCo().score(program, [batch], rows, seed=0)
