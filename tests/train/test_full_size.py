"""Validation of a stage at the image size of the full network: of the weights, and of every averaged copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import progc
from progc.data.staged import for_stage
from progc.data.task import Task, cross_entropy
from progc.emit import emit
from progc.schedule import Point, Regularisation, Schedule, Space, Stage
from progc.schedule.running import trained
from progc.train.full_size import FullSize
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.watching import evaluate, score
from tests.schedule.test_running import adamw, captured, digits, schedule
from tests.train import running as runs

PARALLEL = Single(torch.device("cpu"))
SETTINGS = Settings(batch=32, compile="eager")


@pytest.fixture(scope="module")
def task() -> Task:
    images, labels = digits()
    samples = TensorDataset(images[:48], labels[:48])
    return Task(samples, validation=samples)


def stage(task: Task, sids: list[int | None] | None = None) -> Any:
    """A stage of half the image size after four steps, with an average."""
    program = captured(depth=1, rate=0.0, dropout=0.0)
    made = schedule(program, [Point(resolution=(4, 4)), Point()], sids=sids or [None, None])
    running = next(progc.stages(program, made, optimizer=adamw, ema=lambda m: progc.EMA(m, decays=(0.5,))))
    small = for_stage(task, Regularisation(), running.program)
    for _ in range(4):
        images, labels = next(small.batches(32, seed=0))
        cross_entropy(running.module(images, **running.inputs(32)), [images, labels]).backward()
        running.optimizer.step()
        running.optimizer.zero_grad()
        running.ema.update(running.module)
    return running


@pytest.mark.parametrize("sids", [None, [0, 1]], ids=["plain", "identifier"])
def test_it_is_the_network_at_the_other_size_with_the_present_weights(
    task: Task, sids: list[int | None] | None
) -> None:
    running = stage(task, sids)
    full = FullSize.of(running, task, (8, 8))
    assert full is not None
    with torch.no_grad():
        for parameter in running.module.parameters():
            parameter.mul_(1.1)  # weights are those of the moment
    found = full.evaluate(running, emit(trained(running.program, running.module), "eager"), PARALLEL, SETTINGS)
    now = trained(running.program, running.module)
    held = {name: nn.Parameter(tensor) for name, tensor in running.ema.tensors[0.5].items()}
    averaged = now.replace(tensors={**now.tensors, **held})
    copies = {"full/": now, "full/ema-0.5/": averaged}
    images, labels = digits()
    for prefix, program in copies.items():
        module = progc.apply(program, "grow-resolution{to=8}").module().eval()
        with torch.no_grad():
            outputs = module(images[:48], **running.inputs(48))
        assert found[f"{prefix}loss"] == pytest.approx(float(cross_entropy(outputs, [images, labels[:48]])), rel=1e-5)
        assert found[f"{prefix}top1"] == pytest.approx(float((outputs.argmax(1) == labels[:48]).float().mean()))
    own = evaluate(running.module, for_stage(task, Regularisation(), running.program), running.inputs, running.ema,
                   PARALLEL, SETTINGS)  # fmt: skip
    assert own is not None and own["loss"] != pytest.approx(found["full/loss"])
    assert full.evaluate(running, running.module, PARALLEL, SETTINGS, lambda: True) is None


def test_a_stage_of_the_full_size_has_no_other(task: Task) -> None:
    running = stage(task)
    assert FullSize.of(running, task, (4, 4)) is None and FullSize.of(running, task, None) is None
    assert FullSize.of(running, Task(task.samples), (8, 8)) is None


def test_the_full_size_counts_where_it_is_known() -> None:
    metrics = {"top1": 0.9, "loss": 0.1, "full/top1": 0.5, "full/ema-0.9/top1": 0.6, "full/loss": 2.0}
    assert score(metrics) == 0.6 and score(metrics, higher=False) == 2.0
    assert score({"top1": 0.9, "ema-0.9/top1": 0.95}) == 0.95


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_records_both_sizes(tmp_path: Path, task: Task, wanted: bool) -> None:
    program = runs.program()
    points = [Point(resolution=(4, 4)), Point()]
    made = tuple(Stage(k, point, 0.5) for k, point in enumerate(points))
    plan = Schedule(runs.schedule().model, "linear", made, Space(), total=4, unit="steps")
    settings = Settings(batch=16, compile="eager", ema=(0.9,), validate_full=wanted)
    result = progc.Trainer(plan, program=program, task=task, run=tmp_path / "run", settings=settings).fit()
    assert result.finished
    first, last = [line for line in runs.lines(tmp_path / "run") if line["kind"] == "validation"]
    kinds = {f"{ema}{name}" for ema in ("", "ema-0.9/") for name in ("loss", "top1", "top5")}
    assert {name for name in last if "/" in name or name in kinds} == kinds
    assert {name for name in first if "/" in name or name in kinds} == kinds | (
        {f"full/{name}" for name in kinds} if wanted else set()
    )
