"""ProgramModule: inputs it takes and refuses, devices, copies, plain tensors as parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.errors import InputError
from tests import nets


class Call(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0, *, z: torch.Tensor | None = None) -> Any:
        result = self.linear(x) - y * scale + torch.arange(4, device=x.device)
        return result if z is None else result * z


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {name: torch.randn(2, 4) for name in ("x", "y", "z")}


def test_positional_and_keyword_calls_are_the_same(inputs: dict[str, torch.Tensor]) -> None:
    model, (x, y, z) = Call(), inputs.values()
    expected = model(x, y, z=z)
    for args, kwargs in (((x, y), {"z": z}), ((), inputs), ((x,), {"z": z, "y": y})):
        module = progc.capture(model, args, kwargs).module()
        for other, keywords in (((x, y), {"z": z}), ((), dict(reversed(inputs.items()))), ((x,), {"z": z, "y": y})):
            assert torch.equal(module(*other, **keywords), expected)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(2, 4),), {}, r"inputs have the structure \(Tensor\); expected \(Tensor, T"),
        ((torch.zeros(2, 4), torch.zeros(2, 5), 0.5), {}, r"input `y` has shape \[2, 5\]; expected \[batch, 4\]"),
        ((torch.zeros(2, 4), torch.zeros(4), 0.5), {}, r"input `y` has shape \[4\]"),
        ((torch.zeros(2, 4), torch.zeros(2, 4), 2.0), {}, r"`scale` is 2\.0; expected 0\.5"),
        ((torch.zeros(2, 4), None, 0.5), {}, r"input `y` is a NoneType; expected a tensor of shape \[2, 4\]"),
        ((torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(1)), {}, r"input `scale` is a tensor; "),
        ((torch.zeros(2, 4), torch.zeros(2, 4), 0.5), {"q": 1}, r"structure \(Tensor, Tensor, float, q=int\)"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(args: Any, kwargs: Any, message: str) -> None:
    module = progc.capture(Call(), (torch.randn(2, 4), torch.randn(2, 4), 0.5)).module()
    with pytest.raises(InputError, match=message) as caught:
        module(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_created_tensors_follow_the_module_to_another_device(inputs: dict[str, torch.Tensor]) -> None:
    module = progc.capture(Call(), (inputs["x"], inputs["y"])).module().to("meta")
    found = module(inputs["x"].to("meta"), inputs["y"].to("meta"))
    assert found.is_meta and found.shape == (2, 4)


def test_copies_and_state_dicts_are_independent(inputs: dict[str, torch.Tensor]) -> None:
    module = progc.capture(Call(), (inputs["x"], inputs["y"])).module()
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.get_parameter("linear.weight").add_(1.0)
    assert not torch.equal(module(inputs["x"], inputs["y"]), twin(inputs["x"], inputs["y"]))
    module.load_state_dict(twin.state_dict())
    assert torch.equal(module(inputs["x"], inputs["y"]), twin(inputs["x"], inputs["y"]))


def test_plain_tensors_become_parameters_and_stay_tied() -> None:
    program = progc.capture(nets.TiedWeights(), (torch.tensor([[1, 2], [3, 4]]),))
    plain = {id(t): t.detach().clone() for t in program.tensors.values()}
    module = program.replace(tensors={name: plain[id(t)] for name, t in program.tensors.items()}).module()
    assert module.get_parameter("head.weight") is module.get_parameter("embed.weight")
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert len(list(module.parameters())) == len(list(program.parameters()))


def test_train_and_eval_choose_the_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(2, 4)
    module = progc.capture(model, (x,)).module()
    assert module.training
    torch.manual_seed(0)
    noisy = module(x)
    assert torch.equal(module.eval()(x), model.eval()(x)) and not torch.equal(noisy, module(x))
    assert torch.equal(module.double()(x.double()), model.double()(x.double()))
