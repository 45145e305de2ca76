"""What a boundary is checked by, and its record."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

import progc
from progc.data.task import Task
from progc.errors import CheckError
from progc.schedule import Point, Regularisation
from progc.schedule.running import RunningStage
from progc.train.boundary import Crossing, Record, digest
from progc.train.parallel import Single
from progc.train.settings import Settings
from tests.schedule.test_running import adamw, captured, digits, schedule
from tests.schedule.test_stage_programs import plan

PARALLEL = Single(torch.device("cpu"))


def crossed(
    made: Any, change: Any = None, program: Any = None, task: Task | None = None
) -> tuple[Record, RunningStage]:
    """The first boundary of a schedule, where `change` may do something to what is behind it."""
    images, labels = digits()
    batch = [images[:4], labels[:4]]
    programs = progc.stages(program or captured(), made, optimizer=adamw, ema=lambda m: progc.EMA(m, decays=(0.5,)))
    before = next(programs)
    if before.program.sid is not None:  # its rows start equal, and training makes them differ
        table = dict(before.module.named_parameters())[before.program.sid.table]
        table.data.normal_()
    crossing = Crossing(before, Task(range(4)), batch, PARALLEL, Settings())
    with crossing.clock.timed("transform"):
        after = next(programs)
    if change is not None:
        change(after)
    return crossing.close(after, 7), after


def spoiled(after: RunningStage) -> None:
    with torch.no_grad():
        next(p for name, p in after.module.named_parameters() if name.endswith("head.weight")).add_(1e-3)


@pytest.mark.parametrize("case", ["width", "depth with identifiers"])
def test_a_boundary_keeps_the_function(case: str) -> None:
    """With a stage identifier too, whose row changes: outputs are compared at one and the same row."""
    record, after = crossed(plan(case))
    assert (record.previous, record.stage, record.step) == (0, 1, 7)
    assert record.lossless and record.compared is None
    assert record.max_rel_diff is not None and record.max_rel_diff <= after.tolerance < 1e-6
    assert record.max_abs_diff is not None and record.max_abs_diff < 1e-9
    if case == "width":
        assert record.loss_after == pytest.approx(record.loss_before, abs=1e-5)
    assert record.hash == digest(after.module, after.optimizer, after.ema)
    assert set(record.seconds) == {"transform", "check", "hash"} and record.lost >= sum(record.seconds.values()) - 1e-3
    assert after.module.training  # as it was


def test_a_record_is_json() -> None:
    record, _ = crossed(plan("width"))
    values = json.loads(json.dumps(record.to_json()))
    assert values["stage"] == 1 and values["previous"] == 0 and set(values["measured"]) == {
        "seconds_transform", "seconds_check", "seconds_hash", "seconds_lost",
    }  # fmt: skip
    assert "step" not in values and values["hash"] == record.hash
    assert "stage 2 begins at step 7" in str(record) and "outputs differ by" in str(record)


def test_growth_that_is_said_to_be_lossless_and_is_not_ends_the_run() -> None:
    with pytest.raises(CheckError, match="lossless by analysis, but outputs differ"):
        crossed(plan("width"), spoiled)


def test_growth_that_may_change_the_function_is_measured_and_goes_on() -> None:
    def lossy(after: RunningStage) -> None:
        spoiled(after)
        after.lossless = False

    record, _ = crossed(plan("width"), lossy)
    assert not record.lossless and record.max_rel_diff is not None and record.max_rel_diff > 1e-6


def test_what_is_not_finite_behind_growth_is_found() -> None:
    def broken(after: RunningStage) -> None:
        with torch.no_grad():
            next(p for name, p in after.module.named_parameters() if name.endswith("head.bias"))[0] = float("nan")

    with pytest.raises(CheckError, match="differ by inf"):
        crossed(plan("width"), broken)


def test_outputs_of_another_shape_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([[torch.zeros(4, 10)], [torch.zeros(4, 9)]])
    monkeypatch.setattr(Crossing, "_outputs", lambda self, running: next(calls))
    with pytest.raises(CheckError, match=r"outputs of shapes \[\[4, 10\]\], got \[\[4, 9\]\]"):
        crossed(plan("width"))


def test_outputs_that_were_not_finite_before_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crossing, "_outputs", lambda self, running: [torch.full((4, 10), float("nan"))])
    record, _ = crossed(plan("width"))
    assert record.compared == "outputs were not finite before" and record.max_rel_diff is None
    assert "not compared" in str(record)


def test_images_of_another_size_are_not_compared_but_losses_are() -> None:
    program = captured()
    points = [Point(resolution=(4, 4)), Point(resolution=(8, 8))]
    made = schedule(program, points)
    record, _ = crossed(made, program=program)
    assert record.compared == "the image size changed"
    assert record.max_abs_diff is None and record.max_rel_diff is None
    assert record.loss_before > 0 and record.loss_after > 0 and record.loss_after != record.loss_before


def test_a_check_changes_nothing() -> None:
    """Weights, buffers, modes and random numbers are as before."""
    images, labels = digits()
    running = next(progc.stages(captured(), plan("width"), optimizer=adamw))
    before, state = digest(running.module, running.optimizer, None), torch.get_rng_state()
    Crossing(running, Task(range(4)), [images[:4], labels[:4]], PARALLEL, Settings(amp="bf16"))
    assert digest(running.module, running.optimizer, None) == before
    assert torch.equal(torch.get_rng_state(), state) and running.module.training


def test_regularisation_alone_is_no_change() -> None:
    program = captured()
    regular = [Regularisation(drop_path=rate, dropout=rate) for rate in (0.0, 0.1)]
    record, _ = crossed(schedule(program, [Point(), Point()], regularisation=regular))
    assert record.lossless and record.max_abs_diff == 0.0


def test_records_take_what_comes_later() -> None:
    record, _ = crossed(plan("width"))
    later = dataclasses.replace(record, compiles=3, seconds={**record.seconds, "compile": 0.5})
    assert later.to_json()["compiles"] == 3 and later.to_json()["measured"]["seconds_compile"] == 0.5
