"""No device is written into a graph: networks that were captured on the CPU run, train and grow on a (fake) GPU.

Nor does any of them make the host wait: everything that would raises there (tests/fake_cuda.py).
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import progc
from progc.emit import emit
from progc.growth.grow import grow_with_report
from progc.ir.binding import InputBinding
from progc.ir.check import run_float64
from progc.ir.deferred import defer
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.models.sizes import parse_sizes
from progc.pipeline.manager import run
from tests import zoo
from tests.fake_cuda import CUDA, all_on_cuda, fake_cuda, moved, refused

FAST = ("transformers:gpt2", "own:flat", "own:conv", "own:tied")
SWEEP = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in zoo.NAMES]
SIZES = {"own:conv": "width*2", "own:tied": None}
"""What grows of each network, beside the usual `depth*2,width*2`."""


def away(program: Program) -> Program:
    """A program whose tensors are on the GPU as far as it knows: their values are here, for analysis to read."""
    with fake_cuda():
        fakes = all_on_cuda(program.tensors)
    made = {
        id(tensor): defer(functools.partial(_same, tensor), fakes[name]) for name, tensor in program.tensors.items()
    }
    return program.replace(tensors={name: made[id(tensor)] for name, tensor in program.tensors.items()})


def _same(tensor: Tensor) -> Tensor:
    return tensor


def staged(name: str) -> Program:
    """The network with a stage identifier; moved, then grown and half frozen, as at a boundary of a run."""
    program, _ = run(zoo.captured(name)[1], "inject-sid{stages=3 stage=1}")
    program = away(program)
    sizes = SIZES.get(name, "depth*2,width*2")
    if sizes is not None:
        program = grow_with_report(program, parse_sizes(sizes), check=False).program
    first = next(name for name, tensor in program.parameters() if tensor.requires_grad)
    return run(program, f"freeze{{freeze={first} measure=false}}")[0]


def loss_of(outputs: Any) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()


def check(program: Program, how: str) -> None:
    """Runs the network on the fake device."""
    with fake_cuda():
        there = program.replace(tensors=all_on_cuda(program.tensors))
        args, kwargs = moved(program.example)
        if how == "float64":
            leaves = InputBinding(there).flatten(args, kwargs)
            leaves = pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, leaves)
            outputs, _ = run_float64(there, "eval", leaves)
            assert all(leaf.device == CUDA for leaf in outputs if isinstance(leaf, Tensor))
            return
        if how == "module":
            module: nn.Module = ProgramModule(there)
        else:  # regions as they are compiled, with rates as tensors, but run as they are
            module = emit(there, how, compiler=lambda function, **options: function)  # type: ignore[arg-type]
        with torch.no_grad():
            module.eval()(*args, **kwargs)
        loss_of(module.train()(*args, **kwargs)).backward()
        trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
        assert trained and all(p.requires_grad and p.device == p.grad.device == CUDA for p in trained)
        assert len(trained) < sum(parameter.is_floating_point() for parameter in module.parameters())


@pytest.mark.parametrize("name", SWEEP)
def test_a_staged_network_runs_on_another_device(name: str) -> None:
    """As the module of a program, as the module of a stage, and in the check of a boundary."""
    program = staged(name)
    for how in ("module", "eager", "regions", "float64"):
        check(program, how)


class Planted(nn.Module):
    """Makes a tensor on a device of its own, and may read one on the host."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.linear, self.reads = nn.Linear(4, 4), reads

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.reads:
            return x * x.detach().cpu().sum()
        return x + torch.arange(4, device="cpu")


def test_a_device_of_its_own_and_a_value_that_is_read_are_noticed() -> None:
    """In modules of a user, which nobody has captured; once captured, the first one follows its parameters."""
    with fake_cuda():
        x = torch.empty(2, 4, device=CUDA)
        with CUDA:
            reads, places = Planted(True), Planted(False)
        assert refused(lambda: reads(x))
        with pytest.raises(RuntimeError, match="same device"):
            places(x)
    program = progc.capture(Planted(False), (torch.randn(2, 4),))
    for how in ("stage", "float64"):
        with fake_cuda():
            there = program.replace(tensors=all_on_cuda(program.tensors))
            if how == "stage":
                assert emit(there, "eager")(torch.empty(2, 4, device=CUDA)).device == CUDA
            else:
                assert run_float64(there, "eval", [torch.empty(2, 4, device=CUDA).double()])[0][0].device == CUDA


def test_a_walk_over_the_image_size_follows_too() -> None:
    """Grow-resolution finds sizes on the device of the capture, wherever the tensors are."""
    program = away(zoo.captured("own:image")[1])
    grown = progc.apply(program, "grow-resolution{to=64}")
    assert grown.example[0][0].shape[-1] == 64


def test_costs_are_counted_wherever_the_tensors_are() -> None:
    from progc.analysis.costs.counting import count

    program = zoo.captured("own:flat")[1]
    assert count(away(program)) == count(program)
