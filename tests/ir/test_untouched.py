"""A search leaves everything as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import progc
from progc.errors import CheckError
from progc.ir.program import Program
from progc.ir.untouched import checksum, same_bits, untouched
from tests.nets import ConvNet
from tests.zoo import image, perturb


@pytest.fixture
def program() -> Program:
    torch.manual_seed(1)
    return progc.capture(perturb(ConvNet()), (image(16),))


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_random_states_are_put_back(program: Program) -> None:
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = draws()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with untouched(program):
        assert draws() == expected
        torch.manual_seed(9), random.seed(9), np.random.seed(9)
        draws()
    assert draws() == expected


def test_buffers_gradients_flags_and_modes_are_put_back() -> None:
    module = perturb(ConvNet()).eval()
    first, *others = module.parameters()
    first.grad = torch.ones_like(first)
    grad, others[0].requires_grad = first.grad, False
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with untouched(module):
        assert first.grad is None  # what is accumulated goes nowhere
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        module.train()
        module(image(16)).sum().backward()
        module.register_buffer("more", torch.zeros(3))
        assert any(
            not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items() if name in before
        )
    assert first.grad is grad and torch.equal(grad, torch.ones_like(first))
    assert others[0].grad is None and not others[0].requires_grad and first.requires_grad
    assert not module.training and not any(part.training for part in module.modules())
    assert module.state_dict().keys() == before.keys()
    assert all(same_bits(before[name], tensor) for name, tensor in module.state_dict().items())


def test_programs_that_share_memory_with_the_one_held(program: Program) -> None:
    buffers = {name: t.clone() for name, t in program.tensors.items() if program.specs[name].kind == "buffer"}
    assert buffers
    with untouched(program):
        part = program.module().train()
        part(image(16)).sum().backward()
    assert all(torch.equal(program.tensors[name], buffer) for name, buffer in buffers.items())
    assert all(tensor.grad is None for _, tensor in program.parameters())


def test_a_changed_weight_is_an_error_without_copies_and_put_back_with_them(program: Program) -> None:
    name, weight = next(iter(program.parameters()))
    before = weight.detach().clone()
    with pytest.raises(CheckError, match=f"changed the weight `{name}`") as caught:
        with untouched(program), torch.no_grad():
            weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    with torch.no_grad():
        weight.copy_(before)
    with untouched(program, copies=True), torch.no_grad():
        weight.mul_(2)
    assert same_bits(weight, before)


def test_an_error_inside_is_not_hidden(program: Program) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), untouched(program), torch.no_grad():
        torch.rand(3)
        next(iter(program.parameters()))[1].add_(1)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_written_where_nothing_changed(program: Program) -> None:
    versions = {name: tensor._version for name, tensor in program.tensors.items()}
    with untouched(program, copies=True):
        pass
    assert {name: tensor._version for name, tensor in program.tensors.items()} == versions


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(5, 7), torch.randn(3, 4, dtype=torch.float64), torch.randn(4).bfloat16(), torch.arange(6),
        torch.tensor([True, False, True]), torch.tensor(2.5), torch.randn(3, dtype=torch.complex128),
        torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last), torch.randn(1 << 20).repeat(2)[1:],
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)  # fmt: skip
def test_checksums_tell_single_bits_and_places(tensor: torch.Tensor) -> None:
    same = tensor.clone()
    assert checksum(same) == checksum(tensor) and same_bits(same, tensor)
    flat = same.contiguous().reshape(-1).clone()
    bits = flat.view(torch.uint8)
    bits[-1] ^= 1
    assert checksum(flat) != checksum(tensor) and not same_bits(flat, tensor.contiguous().reshape(-1))
    if tensor.numel() > 2:
        swapped = tensor.contiguous().reshape(-1).clone()
        if swapped[0] != swapped[1]:
            swapped[:2] = swapped[:2].flip(0)
            assert checksum(swapped) != checksum(tensor)


def test_nan_and_signs_of_zero_are_bits() -> None:
    nan = torch.tensor([torch.nan, 0.0])
    assert same_bits(nan, nan.clone()) and checksum(nan) == checksum(nan.clone())
    assert not same_bits(nan, torch.tensor([torch.nan, -0.0]))


def test_empty_tensors_and_modules() -> None:
    with untouched(nn.Module()), untouched():
        pass
    assert checksum(torch.empty(0)) == (0, 0)
