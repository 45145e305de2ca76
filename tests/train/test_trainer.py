"""Runs of the trainer: through all stages, interrupted and resumed, and what they write."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from progc.checkpoints import latest, load
from progc.data.order import DataPosition
from progc.data.task import Task, cross_entropy
from progc.errors import CheckError, InputError
from progc.schedule.rules import Gain
from progc.train.ahead import LookAhead
from progc.train.settings import Settings
from progc.train.trainer import Trainer
from tests.train.running import (
    BATCH,
    STEPS,
    Interrupted,
    lines,
    model,
    outcome,
    program,
    samples,
    schedule,
    train,
    trainer,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = train(run)
    assert result.finished and result.step == 4 * STEPS and result.signal is None
    return run


def test_a_cool_down_trains_at_the_lowest_rate(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cooldown": 2, "min_lr": 0.25, "lr": 0.01, "log_every": 1, "validate_every": None}
    train(tmp_path / "run", **settings)
    rates = [line["lr"] for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert rates[-2:] == [0.0025, 0.0025] and rates[-3] > 0.0025
    with pytest.raises(InputError, match="cooldown: expected fewer than the 12 steps of the run, got 12"):
        trainer(tmp_path / "other", **{**settings, "cooldown": 12})


def test_the_weights_load_into_the_users_own_class(whole: Path) -> None:
    for file in ("model.safetensors", "model-ema-0.9.safetensors"):
        model().load_state_dict(load_file(whole / file), strict=True)


@pytest.mark.parametrize(
    "steps", [1.5, STEPS - 0.5, STEPS + 0.5, 2 * STEPS + 0.5, 3 * STEPS + 1.5], ids=lambda value: f"step {value}"
)
def test_a_run_that_was_asked_to_end_goes_on_bit_for_bit(whole: Path, tmp_path: Path, steps: float) -> None:
    """Inside a stage, and one step either side of a boundary."""
    run = tmp_path / "run"
    data = Interrupted(samples(72), int(steps * BATCH), lambda: os.kill(os.getpid(), signal.SIGTERM))
    first = train(run, data)
    assert not first.finished and first.signal == signal.SIGTERM
    assert 0 < first.step < 4 * STEPS
    assert train(run).finished
    expected, found = outcome(whole), outcome(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert lines(run) == lines(whole)


def test_a_run_with_the_older_order_of_data_does_not_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Interrupted(samples(72), BATCH, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(DataPosition, "to_json", dataclasses.asdict)
        train(tmp_path, data)
    before = outcome(tmp_path)
    with pytest.raises(InputError, match="data order: expected version 2, got version 1"):
        train(tmp_path)
    assert all(torch.equal(value, outcome(tmp_path)[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("asked", "step"),
    [
        pytest.param(10, STEPS, id="at the end of a stage", marks=pytest.mark.slow),
        pytest.param(40, STEPS, id="by the last sample"),
        pytest.param(50, 5, id="inside a stage", marks=pytest.mark.slow),
        pytest.param(63, 5, id="of the averages"),
    ],
)
def test_a_validation_does_not_hold_a_signal_up(whole: Path, tmp_path: Path, asked: int, step: int) -> None:
    """The resumed run does it once, and its metrics are those of an uninterrupted run."""
    run = tmp_path / "run"
    validation = Interrupted(samples(20), asked, lambda: os.kill(os.getpid(), signal.SIGTERM))
    first = train(run, validation=validation)
    assert not first.finished and first.step == step
    assert validation.left > -BATCH  # the batch at hand is the last one
    assert any(line["kind"] == "validation" and line["step"] == step for line in lines(run)) == (asked == 40)
    assert train(run).finished
    assert all(torch.equal(value, outcome(whole)[name]) for name, value in outcome(run).items())
    assert lines(run) == lines(whole)


def test_waiting_for_a_compilation_does_not_hold_a_signal_up(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def waits(self: LookAhead, stop: Callable[[], bool]) -> None:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop():
            time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(LookAhead, "finish", waits)
        first = train(run)
    assert not first.finished and first.signal == signal.SIGTERM and first.step == STEPS
    assert not [line for line in lines(run) if line["kind"] == "boundary"]
    assert train(run).finished
    assert all(torch.equal(value, outcome(whole)[name]) for name, value in outcome(run).items())
    assert lines(run) == lines(whole)


def test_a_run_that_was_asked_to_end_takes_no_first_step(whole: Path, tmp_path: Path) -> None:
    """Its graph may still have to be compiled."""
    run = tmp_path / "run"
    first = trainer(run).fit(begin=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not first.finished and first.step == 0 and latest(run) is None
    assert train(run).finished and lines(run) == lines(whole)


def test_boundaries_say_what_they_cost(whole: Path) -> None:
    found = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [line["measured"] for line in found if line["kind"] == "boundary"]
    assert len(measured) == 3
    phases = {"save", "transform", "compile", "check", "hash", "wrap"}
    for seconds in measured:
        own = {name.removeprefix("seconds_"): value for name, value in seconds.items() if name.startswith("seconds_")}
        lost = own.pop("lost")
        assert own.keys() == phases and sum(own.values()) <= lost + 1e-3


def test_a_rule_of_validation_ends_stages(tmp_path: Path) -> None:
    """As soon as it has seen two gains, here; interrupted or not."""
    more: dict[str, Any] = {"rules": (Gain(fraction=1e9),), "total": 24, "validate_every": 1}
    own = trainer(tmp_path / "whole", **more)
    assert own.fit().finished and own.step == 24
    first = own.controller.log[0] if own.controller is not None else None
    assert first is not None and (first.rule, first.step, first.planned) == ("gain", 3, 6)
    # In the third validation, whose result would have ended the stage.
    validation = Interrupted(samples(20), 90, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = train(tmp_path / "run", validation=validation, **more)
    assert not stopped.finished and stopped.step == 3
    again = trainer(tmp_path / "run", **more)
    assert again.fit().finished
    assert again.controller is not None and again.controller.log[0].rule == "gain"
    boundaries = [
        [line["step"] for line in lines(tmp_path / run) if line["kind"] == "boundary"] for run in ("whole", "run")
    ]
    assert boundaries[0] == boundaries[1] and boundaries[0][0] == 3
    expected = outcome(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in outcome(tmp_path / "run").items())


def test_a_validation_that_is_not_finite_is_written_and_is_no_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progc.train.watching.evaluate", lambda *args, **more: {"loss": float("inf")})
    assert train(tmp_path, rules=(Gain(),)).finished
    told = [line for line in lines(tmp_path) if line["kind"] == "validation"]
    assert told and all(line["loss"] is None for line in told)
    assert not (tmp_path / "best.json").exists()


def test_a_rule_that_is_never_told_anything_is_said(tmp_path: Path) -> None:
    own = trainer(tmp_path, rules=(Gain(),), validate_every=None)
    assert any("rule gain of the plan never ends a stage" in note for note in own.notes)
    with pytest.raises(InputError, match="some with higher true and some with higher false"):
        trainer(tmp_path, rules=(Gain(), Gain(higher=False)))


def test_a_run_killed_during_a_boundary_crosses_it_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    class Killed(Exception):
        pass

    def dies(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("progc.train.boundary.Crossing.close", dies)
        with pytest.raises(Killed):
            train(run)
    found = latest(run)
    assert found is not None and load(found).manifest.step == STEPS
    assert train(run).finished
    assert all(torch.equal(value, outcome(whole)[name]) for name, value in outcome(run).items())
    assert lines(run) == lines(whole)


def test_a_finished_run_stays_as_it_is(whole: Path) -> None:
    before = outcome(whole), lines(whole)
    result = train(whole)
    assert result.finished and result.step == 4 * STEPS
    assert all(torch.equal(value, before[0][name]) for name, value in outcome(whole).items())
    assert lines(whole) == before[1]


def test_micro_batches_give_the_gradient_of_the_batch() -> None:
    """Of unequal sizes too: 16 samples in 3 parts."""
    from progc.train.parallel import Single
    from progc.train.stepping import Guard, Stepper

    torch.manual_seed(0)
    data = samples(BATCH)
    batch = [tensor.double() if tensor.is_floating_point() else tensor for tensor in data.tensors]
    found = []
    for parts in (1, 3):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
        nn.init.constant_(net[1].weight, 0.01)
        nn.init.zeros_(net[1].bias)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        settings = Settings(batch=BATCH)
        stepper = Stepper(
            net, Task(data), lambda _: {}, optimizer, Single(torch.device("cpu")),
            torch.amp.GradScaler("cpu", enabled=False), Guard(settings), settings,
        )  # fmt: skip
        micro = list(zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True))
        out = stepper.step(micro)
        found.append((out.loss, net[1].weight.detach().clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-12, atol=1e-14)
    assert not torch.equal(found[0][1], torch.full_like(found[0][1], 0.01))


def test_a_loss_that_is_not_finite_ends_the_run_before_any_weight_changes(tmp_path: Path) -> None:
    calls = []

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        value = cross_entropy(outputs, batch)
        return value * float("nan") if len(calls) == 3 else value

    settings = Settings(batch=BATCH, compile="eager", save_every=1, seed=1)
    own = Trainer(schedule(), program=program(), task=Task(samples(72), loss), run=tmp_path, settings=settings)
    with pytest.raises(CheckError, match="finite"):
        own.fit()
    found = latest(tmp_path)
    assert found is not None and load(found).manifest.step == 2
    assert own.active is not None
    now = own.active.module.state_dict()
    assert all(torch.equal(now[name], value) for name, value in load(found).weights().items())


def test_other_data_is_refused(whole: Path) -> None:
    with pytest.raises(InputError, match="another seed, batch size or number of samples"):
        train(whole, seed=2)


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    from progc.train.run_folder import held

    code = (
        "import sys; from pathlib import Path; from progc.train.run_folder import held\nwith held(Path(sys.argv[1])): 0"
    )
    with held(tmp_path):  # asked by another process: locks are of processes
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and "another process trains" in done.stderr
