"""SynFlow, GradNorm, Jacobian covariance and NASWOT against their formulas, written for the user's own module."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import InputError
from progc.ir.program import Program
from progc.search.proxies.gradnorm import GradNorm
from progc.search.proxies.jacobian_covariance import JacobianCovariance
from progc.search.proxies.naswot import NASWOT
from progc.search.proxies.synflow import SynFlow
from tests.search.proxies import networks

TASK = networks.task()


class Perceptron(nn.Module):
    """Two hidden layers; `kind` is the nonlinearity."""

    def __init__(self, kind: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 9), kind(), nn.Linear(9, 7, bias=False), kind(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def made(kind: type[nn.Module] = nn.ReLU) -> tuple[Perceptron, Program, tuple[tuple[Tensor], dict[str, Tensor]]]:
    torch.manual_seed(3)
    model = Perceptron(kind)
    batch = ((torch.randn(8, 6),), {})
    return model, progc.capture(model, (torch.randn(2, 6),)), batch  # type: ignore[return-value]


# --- synflow --------------------------------------------------------------------------------------------------------


def synaptic_flow(model: nn.Module, ones: Tensor) -> dict[str, float]:
    """|w| dR/d|w| of a copy with positive weights in float64."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(ones.double()).sum().backward()
    return {
        name: float((p.detach() * p.grad).abs().sum()) for name, p in model.named_parameters() if p.grad is not None
    }


def test_synflow_is_a_sum_of_flows() -> None:
    model, program, batch = made()
    before = copy.deepcopy(model.state_dict())
    flows = synaptic_flow(model, torch.ones(1, 6))
    found = SynFlow(mode="reference").score(program, [batch], TASK, seed=0)
    assert found == pytest.approx(sum(flows.values()), rel=1e-9)
    logs = [math.log10(flow) for flow in flows.values()]
    assert SynFlow().score(program, [batch], TASK, seed=0) == pytest.approx(sum(logs) / len(logs), rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


def test_synflow_of_a_network_with_running_statistics() -> None:
    model, program, batch = networks.case("own:conv")
    flows = synaptic_flow(model, torch.ones(1, 3, 16, 16))
    found = SynFlow(mode="reference").score(program, [batch], TASK, seed=0)
    assert found == pytest.approx(sum(flows.values()), rel=1e-5)


def test_synflow_leaves_out_what_is_frozen() -> None:
    model, program, batch = made()
    flows = synaptic_flow(model, torch.ones(1, 6))
    program = networks.frozen(program, "freeze{freeze=layers.0}")
    left = sum(flow for name, flow in flows.items() if not name.startswith("layers.0"))
    found = SynFlow(mode="reference").score(program, [batch], TASK, seed=0)
    assert found == pytest.approx(left, rel=1e-9) and left < sum(flows.values())


def test_synflow_of_a_network_with_steps_and_labels() -> None:
    _, program, batch = networks.case("diffusers:dit")
    assert math.isfinite(SynFlow().score(program, [batch], TASK, seed=0))


# --- gradnorm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own:conv", "diffusers:dit", "dropped"])
def test_gradnorm_is_the_norm_of_the_gradient(name: str) -> None:
    model, program, batch = networks.case(name)
    kept = networks.naive_gradients(model, [batch], networks.trainable(program), 6)
    entries = sum(rows.numel() for rows in kept.values())
    size = math.sqrt(sum(float(rows.square().sum()) for rows in kept.values()) / entries)
    assert GradNorm().score(program, [batch], TASK, seed=6) == pytest.approx(math.log10(size), rel=1e-5)
    kinds = (nn.Linear, nn.Conv2d)
    weights = {f"{key}.weight" for key, module in model.named_modules() if isinstance(module, kinds)}
    published = sum(float(kept[key].norm()) for key in weights)
    assert GradNorm(mode="reference").score(program, [batch], TASK, seed=6) == pytest.approx(published, rel=1e-5)


# --- jacobian covariance --------------------------------------------------------------------------------------------


def test_jacobian_covariance_is_as_published() -> None:
    model, program, batch = networks.case("own:conv", samples=8)
    x = batch[0][0].clone().requires_grad_()
    copy.deepcopy(model)(x).sum().backward()
    assert x.grad is not None
    values = torch.linalg.eigvalsh(torch.corrcoef(x.grad.flatten(1).double()))
    expected = -float((torch.log(values + 1e-5) + 1 / (values + 1e-5)).sum())
    found = JacobianCovariance(mode="reference").score(program, [batch], TASK, seed=0)
    assert found == pytest.approx(expected, rel=1e-4)
    assert JacobianCovariance().score(program, [batch], TASK, seed=0) == pytest.approx(found / 8)


def test_equal_samples_score_worst() -> None:
    _, program, batch = made(nn.GELU)
    same = ((batch[0][0][:1] + 1e-4 * batch[0][0],), {})
    scores = [JacobianCovariance().score(program, [one], TASK, seed=0) for one in (batch, same)]
    assert scores[0] > scores[1]


def test_jacobian_covariance_needs_a_floating_input() -> None:
    _, program, batch = networks.case("own:tied")
    with pytest.raises(InputError, match="do not depend on a floating-point input; use another proxy"):
        JacobianCovariance().score(program, [batch], TASK, seed=0)


# --- naswot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish])
def test_naswot_compares_signs_before_rectifiers(kind: type[nn.Module]) -> None:
    model, program, batch = made(kind)
    kernel, units = torch.zeros(8, 8, dtype=torch.float64), 0
    value = batch[0][0]
    for layer in model.layers:
        if isinstance(layer, kind):
            code = (value > 0).double()
            kernel, units = kernel + code @ code.T + (1 - code) @ (1 - code).T, units + code.shape[1]
        value = layer(value)
    expected = float(torch.linalg.slogdet(kernel)[1])
    assert NASWOT(mode="reference").score(program, [batch], TASK, seed=0) == pytest.approx(expected, rel=1e-9)
    assert NASWOT().score(program, [batch], TASK, seed=0) == pytest.approx(expected / 8 - math.log(units), rel=1e-9)


def test_naswot_is_minus_infinity_for_equal_samples() -> None:
    _, program, batch = made()
    assert NASWOT().score(program, [((batch[0][0][:1].expand(4, -1),), {})], TASK, seed=0) == -math.inf


def test_naswot_needs_a_rectifier() -> None:
    _, program, batch = networks.case("own:tied")
    with pytest.raises(InputError, match="has no activation function such as ReLU; use another proxy"):
        NASWOT().score(program, [batch], TASK, seed=0)


def test_one_sample_is_too_few() -> None:
    _, program, batch = made()
    for proxy in (NASWOT(), JacobianCovariance()):
        with pytest.raises(InputError, match="expected a batch of at least 2 samples"):
            proxy.score(program, [((batch[0][0][:1],), {})], TASK, seed=0)
