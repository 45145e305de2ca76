"""What the tests of `shrink` check on every sub-network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import progc
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.pipeline.base import PassResult
from progc.pipeline.manager import run
from tests import zoo
from tests.grown import gap, outputs


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    return progc.capture(zoo.perturb(model).eval(), args, kwargs)


def shrunk(program: Program, text: str) -> PassResult:
    """The result of `shrink{text}`, verified, with a lift that says all by itself."""
    (result,) = run(program, f"shrink{{{text}}}")[1]
    assert result.changed and result.lossless is False and result.lift is not None
    again = Lift.from_json(result.lift.to_json())
    assert again == result.lift
    made = again.apply(program.tensors)
    assert made.keys() == result.program.tensors.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in result.program.tensors.items())
    deferred = again.apply(program.deferred.tensors)
    assert all(deferred[name].shape == tensor.shape for name, tensor in made.items())
    for name, tensor in program.replace(tensors=deferred, specs=result.program.specs).complete().tensors.items():
        assert torch.equal(tensor, made[name])
    return result


def check_class(small: Program, reference: nn.Module) -> None:
    """The state loads strictly into the user's class of the small size, which then answers as the program does."""
    reference.load_state_dict(small.state_dict(), strict=True)
    parameters = [name for name, _ in reference.named_parameters()]
    assert [name for name, _ in small.module().named_parameters()] == parameters
    args, kwargs = small.example
    assert gap(outputs(small.module(), args, kwargs), outputs(reference, args, kwargs)) < 1e-12


def shared(small: torch.Tensor, full: torch.Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return small.untyped_storage().data_ptr() == full.untyped_storage().data_ptr()
