"""Stage modules of the trainer: how many compilations, and what happens when one fails."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

import progc
from progc.emit import emit
from progc.errors import CheckError
from progc.ir.program import Program
from progc.train import emitting
from progc.train.emitting import Compiling, emitted, expected_compiles
from progc.train.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
CPU = torch.device("cpu")


@functools.cache
def program() -> Program:
    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(3)]
    return progc.capture(torch.nn.Sequential(torch.nn.Linear(6, 8), *blocks), (torch.randn(4, 6),))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Settings of torch and of the environment are as before."""
    import torch._functorch.config as config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    flag = config.force_non_lazy_backward_lowering
    config.force_non_lazy_backward_lowering = True
    torch._dynamo.reset()
    yield
    config.force_non_lazy_backward_lowering = flag
    torch._dynamo.reset()


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    loss = module(torch.randn(5, 6, generator=torch.Generator().manual_seed(1))).square().mean()
    return list(torch.autograd.grad(loss, list(module.parameters())))


def same(module: torch.nn.Module) -> bool:
    wanted = gradients(program().module().train())
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, gradients(module), strict=True))


def failing(times: int, *, backward: bool) -> tuple[Callable[..., Any], list[int]]:
    """A backend that fails to compile as often as that."""
    failed = [0]

    def compiler(graph: Any, inputs: Any) -> Any:
        if failed[0] < times:
            failed[0] += 1
            raise RuntimeError("no such kernel\nmore text")
        return torch._functorch.aot_autograd.make_boxed_func(graph.forward)

    def fine(graph: Any, inputs: Any) -> Any:
        return torch._functorch.aot_autograd.make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=fine if backward else compiler, bw_compiler=compiler if backward else fine)
    return backend, failed


def test_compilations_are_known_before() -> None:
    counter = CompileCounter()
    module = emit(program(), modes=("train",), compiler=Compiling(), backend=counter).train()
    for _ in range(2):
        gradients(module)
    module.eval()(torch.randn(3, 6))
    assert counter.frame_count == expected_compiles(module) == 2  # stem, and one for all blocks


@pytest.mark.parametrize("backward", [False, True])
def test_a_compilation_that_fails_once_is_done_again(backward: bool) -> None:
    """With an empty cache; the one that was in use stays for others. A failing backward is found in the forward."""
    told: list[str] = []
    folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    Path(folder).mkdir(exist_ok=True)
    backend, failed = failing(1, backward=backward)
    compiling = Compiling(told.append)
    module = emit(program(), modes=("train",), compiler=compiling, backend=backend).train()
    assert same(module) and failed == [1] and not compiling.given_up
    assert len(told) == 1 and "no such kernel" in told[0] and "\n" not in told[0]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != folder and Path(folder).is_dir()


@pytest.mark.parametrize("backward", [False, True])
def test_a_stage_that_cannot_be_compiled_trains_without(backward: bool) -> None:
    told: list[str] = []
    backend, failed = failing(10**6, backward=backward)
    compiling = Compiling(told.append)
    module = emit(program(), modes=("train",), compiler=compiling, backend=backend).train()
    assert same(module) and compiling.given_up
    count = failed[0]
    assert same(module) and failed[0] == count and len(told) == 2 and "trains uncompiled" in told[1]


def test_errors_of_the_network_stay_what_they_are() -> None:
    module = emit(program(), modes=("train",), compiler=Compiling(), backend="eager").train()
    with pytest.raises(progc.errors.InputError):
        module(torch.randn(5, 7))


def test_wrong_gradients_end_the_run_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(device: str) -> None:
        raise CheckError("torch.compile gives wrong gradients here")

    monkeypatch.setattr(emitting, "check_compiler", wrong)
    with pytest.raises(CheckError, match="wrong gradients"):
        emitted(program(), Settings(), CPU)
    emitted(program(), Settings(compile="eager"), CPU)  # asks nobody


def test_a_machine_without_a_compiler_trains_without(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    backend, _ = failing(10**6, backward=False)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, **{**options, "backend": backend}))
    emitting.check_compiler.__globals__["_checked"].cache_clear()
    module = emitted(program(), Settings(), CPU, told.append).train()
    assert len(told) == 2 and same(module)
    emitting.check_compiler.__globals__["_checked"].cache_clear()


def test_a_guard_that_loses_gradients_is_refused() -> None:
    unsafe = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    with pytest.raises(progc.errors.InputError, match="unfrozen later"):
        emit(program(), options={"guard_filter_fn": unsafe})
