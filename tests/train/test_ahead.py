"""The next stage compiled from its outline: the very functions that it will use, no weights, no harm to training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import progc
from progc.emit import emit, regions
from progc.emit.specs import arguments
from progc.emit.stage_module import calls
from progc.ir.deferred import values
from progc.schedule.running import stage_inputs
from progc.train import ahead
from progc.train.ahead import NextStage
from progc.train.settings import Amp, Settings
from progc.train.stepping import AMP_DTYPES, autocast
from tests.emit.test_ahead import Small
from tests.schedule.test_running import captured
from tests.schedule.test_stage_programs import CASES, outlines, plan

CPU = torch.device("cpu")


def call(batch: int = 5) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(batch, 1, 8, 8),), {}


@pytest.mark.parametrize("case", CASES)
def test_outlines_give_the_regions_that_stages_have(case: str) -> None:
    """Keys and arguments, which are all that is compiled."""
    made = plan(case)
    for running, outline in zip(progc.stages(captured(), made), outlines(captured(), made), strict=True):
        real, hollow = emit(running.program, modes=("train",)), emit(outline, modes=("train",), hollow=True)
        assert all(tensor.is_meta for tensor in hollow.parameters())
        assert list(regions(hollow, "train")) == list(regions(real, "train"))
        inputs = stage_inputs(outline, running.stage, 5, CPU)
        given = [
            arguments(program, "train", calls(module, "train"), call()[0], inputs)
            for program, module in ((outline, hollow), (running.program, real))
        ]
        assert given[0] == given[1]
        assert all(getattr(item, "device", "cpu") == "cpu" for group in given[0].values() for item in group)


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_arguments_are_those_of_a_run_in_mixed_precision(amp: Amp) -> None:
    """What every compiled function gets in a training step: in bf16 other dtypes go from region to region."""
    settings, program = Settings(amp=amp), progc.capture(Small(), (torch.randn(4, 6),))
    seen: dict[Any, tuple[Any, ...]] = {}

    def compiler(function: Any, **options: Any) -> Any:
        def recorded(*values: Any) -> Any:
            seen.setdefault(function, values)
            return function(*values)

        return recorded

    module, args = emit(program, modes=("train",), compiler=compiler).train(), (torch.randn(5, 6),)
    with autocast(CPU, settings):
        module(*args)
    own, dtype = calls(module, "train"), AMP_DTYPES[amp]
    given = arguments(program, "train", own, args, {}, CPU, dtype)
    assert len(seen) == len(regions(module, "train")) == 2
    for key, region in {one.region.key: one.region for one in own if one.region.computes}.items():
        real = seen[region.function]
        assert len(real) == len(given[key])
        for value, found in zip(real, given[key], strict=True):
            if not isinstance(value, torch.Tensor):
                assert value == found
                continue
            assert (tuple(value.shape), tuple(value.stride()), value.dtype, value.requires_grad) == (
                found.shape, found.stride, found.dtype, found.requires_grad,
            )  # fmt: skip
    without = arguments(program, "train", own, args, {}, CPU)
    assert (without == given) == (dtype is None)


def test_the_device_is_that_of_training() -> None:
    outline = outlines(captured(), plan("width"))[1]
    hollow = emit(outline, modes=("train",), hollow=True)
    given = arguments(outline, "train", calls(hollow, "train"), *call(), device=torch.device("meta"))
    assert {getattr(item, "device", "meta") for group in given.values() for item in group} == {"meta"}


def test_no_weights_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    outline = outlines(captured(), plan("width"))[1]
    started = []

    def start(program: Any, module: Any, *args: Any, **more: Any) -> None:
        started.append(more["device"])
        assert all(tensor.is_meta for tensor in module.parameters())

    asked: list[torch.Tensor] = []
    monkeypatch.setattr("progc.ir.deferred.values", lambda tensor: asked.append(tensor) or values(tensor))
    monkeypatch.setattr(ahead, "compile_ahead", start)
    assert NextStage(outline, Settings(), call(), CPU).failed is None
    assert started == [CPU] and not asked


def test_whatever_fails_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    outline = outlines(captured(), plan("width"))[1]

    def broken(*args: Any, **more: Any) -> None:
        raise ZeroDivisionError("no process\ncan be started")

    monkeypatch.setattr(ahead, "compile_ahead", broken)
    following = NextStage(outline, Settings(), call(), CPU)
    assert following.failed == "no process can be started"
    assert following.finish() is False
    following.cancel()

    class Full:
        cancelled = 0

        def finish(self, stop: Any) -> bool:
            raise OSError("the disk is full")

        def cancel(self) -> None:
            self.cancelled += 1

    full = Full()
    monkeypatch.setattr(ahead, "compile_ahead", lambda *args, **more: full)
    following = NextStage(outline, Settings(), call(), CPU)
    assert following.finish() is False and following.failed == "the disk is full" and full.cancelled == 1
    assert following.finish() is False


def test_what_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    following = NextStage(outlines(captured(), plan("width"))[1], Settings(), call(), CPU)
    assert following.failed is None and following._ahead is not None
    folder, process = following._ahead.folder, following._ahead.process
    following.cancel()
    following.cancel()
    assert not folder.exists() and process.returncode is not None
    assert following.finish() is False


TRAINING = """
import torch
import progc
from progc.schedule import ModelRef, Point, Schedule, Space, Stage
from progc.schedule.stage_programs import StagePrograms
from progc.train.ahead import NextStage
from progc.train import emitting
from progc.train.emitting import emitted, expected_compiles
from progc.train.settings import Amp, Settings
from progc.train.stepping import AMP_DTYPES, autocast
from torch._dynamo.utils import counters

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
    def forward(self, x):
        return x + torch.tanh(self.inner(x))

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Sequential(*(Block() for _ in range(4))))
program = progc.capture(model, (torch.randn(4, 6),))
(chain,) = program.chains
stages = tuple(Stage(k, Point({chain.name: 2 + 2 * k}), 0.5) for k in range(2))
plan = Schedule(ModelRef.of(program), "linear", stages, Space(), total=2, unit="steps")
cpu, settings, x = torch.device("cpu"), Settings(amp="bf16"), torch.randn(5, 6)
emitting.check_compiler = lambda device: None  # has a test of its own
first, running = progc.stages(program, plan)
emitted(first.program, settings, cpu)
following = NextStage(StagePrograms(program, stages).outline(1), settings, ((x,), {}), cpu)
assert following.finish(), following.failed
module = emitted(running.program, settings, cpu).train()
seen = dict(counters["inductor"])
with autocast(cpu, settings):
    loss = module(x).float().square().mean()
loss.backward()
new = {key: counters["inductor"][key] - seen.get(key, 0) for key in ("fxgraph_cache_hit", "fxgraph_cache_miss")}
print(expected_compiles(module), *new.values())
"""


def test_the_next_stage_finds_everything_compiled(tmp_path: Path) -> None:
    """In a process as users have it, and in mixed precision: what fits there fits without, too."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    command = [sys.executable, "-c", TRAINING]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    count, hits, misses = map(int, ran.stdout.split())
    assert count == 2 and hits == 2 * count and misses == 0  # forward and backward of each
