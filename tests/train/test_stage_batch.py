"""Runs whose stages have batches of their own: samples, learning rates, costs, and resuming anywhere."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from progc.data.task import Task
from progc.errors import InputError
from progc.schedule import Schedule
from progc.schedule.pace import Pace
from progc.schedule.rules import Plateau
from progc.search.one_shot import copied
from progc.train.pacing import batch_notes, rate_factor
from progc.train.parallel import Single
from progc.train.settings import Settings
from progc.train.trainer import Trainer
from tests.sweeps import some
from tests.train import searching
from tests.train.running import Interrupted, lines, outcome, program, samples, schedule

BATCHES = (24, 16, 12, 8)
COUNT = 72
"""Samples: epochs of 3, 4, 6 and 9 steps."""


class Seen:
    """Samples that write down which ones are asked for."""

    def __init__(self) -> None:
        self.inner, self.asked = samples(COUNT), list[int]()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.inner[index]


def plan(unit: str, rules: tuple[Any, ...] = ()) -> Schedule:
    total = 12 if unit == "steps" else 4
    return dataclasses.replace(schedule(rules), total=total, unit=unit)


def trainer(run: Path, unit: str, data: Any = None, *, rules: tuple[Any, ...] = (), **more: Any) -> Trainer:
    # A run that resumes in the last stage trains the tensors of the given program.
    given = plan(unit, rules)
    parallel = {"parallel": more.pop("parallel")} if "parallel" in more else {}
    values = {
        "stage_batch": BATCHES, "compile": "eager", "ema": (0.9,), "log_every": 1, "keep": None, "seed": 1,
        "validate_every": 5, **more,
    }  # fmt: skip
    task = Task(samples(COUNT) if data is None else data, validation=samples(20))
    return Trainer(given, program=copied(program()), task=task, run=run, settings=Settings(**values), **parallel)


def kind(run: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in lines(run) if line["kind"] == name]


@pytest.fixture(scope="module", params=["epochs", "steps"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted; its folder has the name of the unit."""
    run = tmp_path_factory.mktemp("whole") / str(request.param)
    result = trainer(run, request.param).fit()
    assert result.finished and result.step == (22 if request.param == "epochs" else 12)
    return run


def test_every_stage_has_its_batch_and_its_steps(whole: Path) -> None:
    found = kind(whole, "train")
    if whole.name == "epochs":
        assert [line["step"] for line in kind(whole, "boundary")] == [3, 7, 13]
        assert [line["epoch"] for line in found] == [0] * 3 + [1] * 4 + [2] * 6 + [3] * 9
        assert [line["batch"] for line in found] == [24] * 3 + [16] * 4 + [12] * 6 + [8] * 9
    else:
        assert [line["step"] for line in kind(whole, "boundary")] == [3, 6, 9]
        # 48 of 72 samples in stage 1, then 24 are left for two steps of stage 2.
        assert [line["epoch"] for line in found] == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
        assert [line["batch"] for line in found] == [24] * 3 + [16] * 3 + [12] * 3 + [8] * 3


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_samples_are_used_once_per_epoch(tmp_path: Path, unit: str) -> None:
    data = Seen()
    trainer(tmp_path / "run", unit, data, validate_every=None).fit()
    per_step: list[int] = [line["batch"] for line in kind(tmp_path / "run", "train")]
    epochs = [line["epoch"] for line in kind(tmp_path / "run", "train")]
    # At each boundary 8 samples are compared; they do not train.
    asked, used = iter(data.asked), dict[int, list[int]]()
    boundaries = [line["step"] for line in kind(tmp_path / "run", "boundary")]
    for step, (count, epoch) in enumerate(zip(per_step, epochs, strict=True)):
        if step in boundaries:
            assert len([next(asked) for _ in range(8)]) == 8
        used.setdefault(epoch, []).extend(next(asked) for _ in range(count))
    assert next(asked, None) is None
    assert all(len(found) == len(set(found)) for found in used.values())
    assert unit == "steps" or [len(found) for found in used.values()] == [72, 64, 72, 72]


STEPS = {"epochs": (1, 3, 5, 9, 13, 16), "steps": (1, 3, 5, 7, 9, 10)}
"""Inside stages and epochs, and at boundaries."""


@pytest.mark.parametrize("place", some(range(6), [2, 3]))
def test_a_run_resumes_bit_for_bit(whole: Path, tmp_path: Path, place: int) -> None:
    """Stopped by a signal in a step; checkpoints are those of the signal and of the boundaries."""
    run, step = tmp_path / whole.name, STEPS[whole.name][place]
    batches = [line["batch"] for line in kind(whole, "train")]
    # Validation has samples of its own.
    boundaries = sum(line["step"] < step for line in kind(whole, "boundary"))
    data = Interrupted(
        samples(COUNT), sum(batches[: step - 1]) + 8 * boundaries + 1, lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    first = trainer(run, whole.name, data).fit()
    assert not first.finished and step <= first.step <= step + 1
    assert trainer(run, whole.name).fit().finished
    expected, found = outcome(whole), outcome(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert lines(run) == lines(whole)


def test_equal_batches_change_nothing(tmp_path: Path) -> None:
    for name, given in (("plain", {"stage_batch": (), "batch": 16}), ("stages", {"stage_batch": (16,) * 4})):
        trainer(tmp_path / name, "epochs", **given).fit()
    assert lines(tmp_path / "plain") == lines(tmp_path / "stages")
    one, two = outcome(tmp_path / "plain"), outcome(tmp_path / "stages")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_plan_can_hold_the_batches(whole: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", whole.name)
    given = plan(whole.name).with_batches(BATCHES)
    assert made.schedule == given and Schedule.from_json(given.to_json()) == given
    settings = dataclasses.replace(made.settings, stage_batch=(), batch=5)
    other = Trainer(given, program=copied(program()), task=made.task, run=tmp_path / "run", settings=settings)
    assert other.fit().finished and lines(tmp_path / "run") == lines(whole)
    assert other.notes == (
        "the stages have batches of 24, 16, 12, 8, as the plan says, so train.batch (5) has no effect; the learning "
        "rate does not change with them (train.stage_lr sets a factor for each stage)",
    )
    assert batch_notes(given, Settings(stage_batch=BATCHES, stage_lr=(3, 2, 1.5, 1))) == (
        "the stages have batches of 24, 16, 12, 8",
    )
    assert batch_notes(plan("steps"), Settings()) == ()


def test_other_batches_are_another_run(whole: Path) -> None:
    with pytest.raises(InputError, match="was trained with another"):
        trainer(whole, whole.name, stage_batch=(24, 16, 12, 6)).fit()


# --- the learning rate ----------------------------------------------------------------------------------------------


def rates(batches: tuple[int, ...], **values: Any) -> list[dict[float, float]]:
    """The factor at the epochs (in fractions) at which steps of each stage begin."""
    settings = Settings(batch=1, lr=1.0, **values)
    pace = Pace.of(plan("epochs").with_batches(batches), 1, COUNT, 8)
    return [
        {
            pace.mark(stage, step) / pace.ruler: rate_factor(settings, pace, stage, step)
            for step in range(pace.start(stage), pace.start(stage) + pace.steps[stage])
        }
        for stage in range(4)
    ]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "wsd", "linear-to-zero"])
def test_at_the_same_epoch_the_rate_is_the_same_for_any_batches(shape: str) -> None:
    values = {"lr_schedule": shape, "warmup": 0.25, "warmup_floor": 1e-3}
    alike, other = rates((8,) * 4, **values), rates(BATCHES, **values)
    for expected, found in zip(alike, other, strict=True):
        both = expected.keys() & found.keys()
        assert len(both) >= 2 and all(found[epoch] == pytest.approx(expected[epoch]) for epoch in both)
    assert [len(found) for found in other] == [6, 8, 12, 18]


def test_it_rises_by_steps_and_cools_down_by_epochs() -> None:
    first, second, *_, last = rates(BATCHES, warmup=0.25, rewarm=2, cooldown=1, min_lr=0.5, lr_schedule="constant")
    assert list(first.values())[:3] == pytest.approx([3 / 16, 6 / 16, 9 / 16])  # a quarter of 7 epochs of 9 marks
    assert list(second.values())[:3] == [0.5, 1.0, 1.0]
    assert list(last.values()) == [0.5, 1.0, *[1.0] * 7, *[0.5] * 9]


# --- rules, searches, ranks -----------------------------------------------------------------------------------------


def test_rules_count_epochs_and_a_run_under_rules_resumes(tmp_path: Path) -> None:
    """The first stage ends early, so that later ones begin at steps that nobody knew before."""
    rules = (Plateau(window=1, threshold=0.9, least=0.5, most=1.5, smoothing=0.0),)
    more: dict[str, Any] = {"total": 12, "rules": rules, "save_every": 1, "validate_every": 50}
    more |= {"stage_batch": (24, 16, 12, 24), "rewarm": 6}
    one, two = tmp_path / "one", tmp_path / "two"
    assert trainer(one, "epochs", **more).fit().finished
    boundaries = kind(one, "boundary")
    assert [line["step"] for line in boundaries] == [6, 14, 26]  # and not after 9 steps
    assert [line["epoch"] for line in kind(one, "train")][-18::3] == [
        6,
        7,
        8,
        9,
        10,
        11,
    ]  # the last stage gets what is left
    at = 6 * 24 + 8 + 5 * 16 + 1  # in the second step of the second epoch of stage 1
    data = Interrupted(samples(COUNT), at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert trainer(two, "epochs", data, **more).fit().step == 12
    assert trainer(two, "epochs", **more).fit().finished
    assert lines(two) == lines(one)  # the learning rate too, which rises again after the boundary
    assert all(torch.equal(value, outcome(two)[name]) for name, value in outcome(one).items())


def test_a_search_uses_the_batch_of_its_stage(tmp_path: Path) -> None:
    made = searching.trainer(tmp_path / "run", searching.plan("one-shot"), stage_batch=(16, 32, 8), save_every=None)
    online = made._online
    assert online is not None and online.batches == [16, 32, 8]
    assert [online.per_epoch(stage) for stage in range(3)] == [4, 2, 8]
    assert [online.length(stage) for stage in range(2)] == [3, 2]  # three quarters of an epoch, rounded
    assert made.fit().finished
    found = Schedule.read(tmp_path / "run" / "plan.json")
    assert [stage.batch for stage in found.stages] == [16, 32, 8]
    assert [stage.cost.batch for stage in found.stages[:2] if stage.cost is not None] == [16, 32]
    assert [line["step"] for line in kind(tmp_path / "run", "decision")] == [3, 8]
    repeated = searching.trainer(tmp_path / "again", found.closed, save_every=None)
    assert repeated.pace.batches == (16, 32, 8) and repeated._online is None


def test_the_next_stage_is_compiled_for_its_own_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of half a batch, of the stage that trains and of the next one."""
    given: list[Any] = []
    monkeypatch.setattr("progc.train.ahead.NextStage", lambda *args: given.append(args))
    trainer(tmp_path / "run", "steps", compile="regions", accumulate=2)._ahead.begin(1)
    ((_, _, following, _, (_, present)),) = given
    assert (len(present[0][0]), len(following[0][0])) == (8, 6)


class Three(Single):
    """One of three ranks."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.world = 3


def test_all_batches_are_checked_before_anything_trains(tmp_path: Path) -> None:
    for given, message in (
        ({"parallel": Three()}, "a batch of 16 for 3 ranks: expected a multiple of the number of ranks"),
        ({"accumulate": 8, "parallel": Three(), "stage_batch": (24, 48, 12, 24)}, "4 samples per rank cannot make 8"),
        ({"stage_batch": (24, 16, 12, 80)}, "a batch of 80 samples for stage 3, got 72"),
        ({"stage_batch": (24, 16)}, "stage_batch: expected one batch size for each of the 4 stages, got 2; give as"),
        ({"stage_batch": (24, 0, 1, 1)}, "stage_batch: expected integers of at least 1, got 0 for stage 1"),
        ({"accumulate": 9}, "accumulate: expected at most the batch size 8, got 9"),
    ):
        with pytest.raises(InputError, match=message):
            trainer(tmp_path / "run", "steps", **given)
    assert not (tmp_path / "run").exists()
