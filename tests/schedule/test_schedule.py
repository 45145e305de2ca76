"""Schedules as data: JSON there and back, and files that were edited, are for another model, or too new."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progc.errors import InputError
from progc.schedule import (
    Candidate,
    Decision,
    ModelRef,
    Point,
    Regularisation,
    Schedule,
    Space,
    Stage,
    StageCost,
    Unfreeze,
)
from progc.schedule.stage import bound, sample_shares, time_shares
from tests import zoo
from tests.schedule.spaces import DIT, SHAPES, VOLO

MODEL = ModelRef("nets.Net", "ab" * 32, 12_345, "nets.py:Net", "vit_s")


def equal(stages: int, **more: Any) -> Schedule:
    parts = tuple(Stage(k, VOLO.point(VOLO.last), 1 / stages) for k in range(stages))
    return Schedule(MODEL, "linear", parts, VOLO, **more)


_POINTS = st.builds(
    Point,
    st.dictionaries(st.sampled_from(["blocks", "layer3", "a.#.b"]), st.integers(1, 99), max_size=3),
    st.dictionaries(st.sampled_from(["width", "heads", "mlp", "fc1.hidden"]), st.integers(1, 9999), max_size=3),
    st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    st.none() | st.sampled_from(SHAPES),
)
_RATES = st.none() | st.floats(0, 1)
_REGULARISATIONS = st.builds(Regularisation, _RATES, _RATES, st.none() | st.floats(0, 10), _RATES, _RATES)
_COSTS = st.builds(StageCost, *[st.integers(0, 10**15)] * 9, st.none() | st.floats(1e-6, 1e3))
_SCORES = st.dictionaries(st.sampled_from(["ntk", "zico", "time"]), st.floats(-1e9, 1e9), max_size=3)
_CANDIDATES = st.builds(Candidate, _POINTS, _SCORES, _SCORES, st.floats(-1e9, 1e9))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    parts = draw(st.lists(st.integers(1, 100), min_size=1, max_size=6))
    stages = tuple(
        Stage(
            k,
            draw(_POINTS),
            part / sum(parts),
            draw(st.none() | st.integers(0, 9)),
            draw(_REGULARISATIONS),
            draw(st.none() | _COSTS),
        )
        for k, part in enumerate(parts)
    )
    decisions = []
    for k in range(draw(st.integers(0, 2))):
        candidates = tuple(draw(st.lists(_CANDIDATES, min_size=1, max_size=3)))
        winner = draw(st.integers(0, len(candidates) - 1))
        decisions.append(Decision(k, candidates, winner, "why", {"alpha": 0.5}, draw(st.none() | st.floats(0, 9))))
    return Schedule(
        MODEL,
        draw(st.sampled_from(["linear", "one-shot", "zero-shot"])),
        stages,
        draw(st.sampled_from([VOLO, DIT, Space()])),
        mode=draw(st.sampled_from(["default", "reference"])),
        seed=draw(st.integers(0, 2**63)),
        total=draw(st.none() | st.integers(1, 10**6)),
        unit=draw(st.sampled_from(["epochs", "steps"])),
        decisions=tuple(decisions),
        settings={"batches": 8},
        notes=tuple(draw(st.lists(st.text(max_size=9), max_size=2))),
    )


@given(schedules())
@settings(max_examples=30)
def test_json_there_and_back(schedule: Schedule) -> None:
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json(), allow_nan=False))) == schedule


def test_a_file_there_and_back(tmp_path: Path) -> None:
    schedule = equal(4, total=100, notes=("a note",))
    schedule.write(tmp_path / "plan.json")
    assert Schedule.read(tmp_path / "plan.json") == schedule


def test_scores_that_are_no_number_stay_none(tmp_path: Path) -> None:
    lost = Candidate(Point(), {"ntk": math.nan, "time": 1.0}, {"time": 1.0}, math.nan)
    schedule = equal(2, decisions=(Decision(0, (lost,), 0, "only one"),))
    schedule.write(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["decisions"][0]["candidates"][0]["scores"]["ntk"] is None
    found = Schedule.read(tmp_path / "plan.json").decisions[0].candidates[0]
    assert math.isnan(found.scores["ntk"])
    assert math.isnan(found.total)
    assert found.scores["time"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected a version of at most 1, got 2; update progc"),
        ({"version": "1"}, "got '1'; update progc"),
        ({"format": "progc growth plan"}, "got 'progc growth plan'"),
        ({"speed": 3}, "unknown key `speed`"),
        ({"strategy": " "}, "strategy: expected linear, one-shot, zero-shot or the name of another one, got ' '"),
        ({"mode": "best"}, "mode: expected default or reference, got 'best'"),
        ({"unit": "hours"}, "unit: expected epochs or steps, got 'hours'"),
        ({"total": 0}, "total: expected an integer of at least 1, or null, got 0"),
        ({"total": "100"}, "total: expected an integer of at least 1, or null, got '100'"),
        ({"seed": None}, "seed: expected an integer, got None"),
        ({"stages": []}, "expected at least one stage, got none"),
        ({"stages": None}, "schedule: invalid value"),
        ({"model": {"class_name": "A"}}, "schedule: invalid value"),
        ({"space": {"unfreeze": ["interleave"]}}, "expected shape:level/levels"),
        ({"space": {"depths": [{"a": 4}, {"a": 2}]}}, "depths: expected ascending levels"),
        ({"space": {"depths": [{"a": 2}, {"b": 4}]}}, "depths: expected the same names in all levels"),
        ({"decisions": [{"winner": 0, "candidates": []}]}, "expected the index of one of 0 candidates, got 0"),
    ],
)
def test_edited_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({**equal(2).to_json(), **change}))
    with pytest.raises(InputError) as error:
        Schedule.read(tmp_path / "plan.json")
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'plan.json'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.6}, "shares of the stages that sum to 1, got 1.1"),
        ({"share": 0}, "share: expected a number above 0 and at most 1, got 0"),
        ({"share": "half"}, "above 0 and at most 1, got 'half'"),
        ({"share": math.nan}, "share: expected a number above 0"),
        ({"index": 3}, "expected stages numbered from 0 in order, got [0, 3]"),
        ({"sid": -1}, "sid: expected an integer of at least 0, got -1"),
        ({"colour": 1}, "stage: unknown key `colour`"),
        ({"point": {"depth": 3}}, "point: unknown key `depth`"),
        ({"point": {"depths": {"a": 0}}}, "depths: expected names with integers of at least 1"),
        ({"point": {"resolution": 224}}, "resolution: expected [height, width] in pixels, got 224"),
        ({"point": 3}, "point: expected an object, got 3"),
        ({"regularisation": {"drop_path": 2}}, "drop_path: expected a number from 0 to 1, got 2"),
        ({"cost": {"batch": 3}}, "is missing; make the plan again"),
    ],
)
def test_edited_stages(change: dict[str, Any], message: str) -> None:
    data = equal(2).to_json()
    data["stages"][1] = {**data["stages"][1], **change}
    with pytest.raises(InputError) as error:
        Schedule.from_json(data)
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["index", "point", "share"])
def test_missing_keys(key: str) -> None:
    data = equal(2).to_json()
    del data["stages"][0][key]
    with pytest.raises(InputError, match=f"key `{key}` is missing"):
        Schedule.from_json(data)
    data = equal(2).to_json()
    del data["model"]
    with pytest.raises(InputError, match="key 'model' is missing; make the plan again"):
        Schedule.from_json(data)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3"])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match="plan.json"):
        Schedule.read(tmp_path / "plan.json")
    with pytest.raises(InputError, match="cannot be read as a plan"):
        Schedule.read(tmp_path / "missing.json")


def test_a_schedule_is_for_one_structure() -> None:
    """Neither values of weights nor the trainable set count; another structure is refused."""
    import progc

    _, program = zoo.captured("own:image")
    _, other = zoo.captured("own:flat")
    parts = (Stage(0, Point(), 1.0),)
    schedule = Schedule(ModelRef.of(program), "linear", parts, Space())
    schedule.check(program)
    schedule.check(progc.apply(program, "freeze{prefix=2}"))
    with pytest.raises(InputError, match=r"the plan is for .*ImageTransformer with 12,423 parameters, not for this"):
        schedule.check(other)
    with pytest.raises(InputError, match="make a plan for this model"):
        schedule.check(progc.apply(program, "grow-depth{to=5}"))


# -- when stages begin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "stages", "expected"), [(100, 4, [0, 25, 50, 75]), (110, 4, [0, 27, 55, 82])])
def test_published_stage_epochs(total: int, stages: int, expected: list[int]) -> None:
    assert equal(stages).starts(total) == expected


def test_stage_epochs_are_the_published_formula() -> None:
    for total in [*range(1, 130), 240, 300, 1000, 240_000]:
        for stages in (1, 2, 3, 4, 5, 6, 7, 9, 11, 13):
            if total < stages:
                continue
            found = equal(stages, total=total).starts()
            assert found == [k * total // stages for k in range(stages)]
            published = np.floor(np.linspace(0, total, stages + 1))[:-1].astype(int).tolist()
            assert all(a - b in (0, 1) for a, b in zip(found, published, strict=True))
            if stages in (1, 2, 4) or total in (97, 100, 300):  # where its floating point is exact
                assert found == published


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 10))
def test_unequal_shares_add_up(parts: list[int], times: int) -> None:
    stages = tuple(Stage(k, Point(), part / sum(parts)) for k, part in enumerate(parts))
    schedule = Schedule(MODEL, "linear", stages, Space())
    starts = schedule.starts(times * sum(parts))
    assert starts == [times * sum(parts[:k]) for k in range(len(parts))]


def test_a_run_that_is_too_short_or_of_unknown_length() -> None:
    with pytest.raises(InputError, match="3 epochs are too few for 4 stages; give at least one"):
        equal(4).starts(3)
    with pytest.raises(InputError, match="the length of the run is not known"):
        equal(4).starts()


def test_speedup_by_operations_and_by_seconds() -> None:
    cost = StageCost(8, 10, 10, 100, 200, 0, 0, 0, 0)
    costs = [dataclasses.replace(cost, forward_flops=part, backward_flops=2 * part) for part in (163, 340, 612, 1000)]
    stages = tuple(Stage(k, Point(), 0.25, cost=one) for k, one in enumerate(costs))
    found = Schedule(MODEL, "linear", stages, Space()).speedup
    assert found is not None
    assert round(found, 2) == 1.89  # the bound that the published schedule has
    timed = [dataclasses.replace(one, seconds=s, batch=4) for one, s in zip(costs, (1, 1, 2, 4), strict=True)]
    stages = tuple(dataclasses.replace(stage, cost=one) for stage, one in zip(stages, timed, strict=True))
    assert Schedule(MODEL, "linear", stages, Space()).speedup == 2
    assert equal(2).speedup is None


# -- spaces --------------------------------------------------------------------------------------------------------


def test_what_later_stages_cost() -> None:
    """In epochs of a stage: 10 epochs each, the costs 1, 2 and 4 by operations, and otherwise by seconds."""
    plan = equal(3)
    assert plan.costs() is None and plan.later(0, 30) is None
    cost = StageCost(2, 0, 0, 10, 20, 0, 0, 0, 0)
    by_operations = dataclasses.replace(
        plan,
        stages=tuple(
            dataclasses.replace(stage, cost=dataclasses.replace(cost, backward_flops=30 * 2**k - 10))
            for k, stage in enumerate(plan.stages)
        ),
    )
    assert by_operations.costs() == [15, 30, 60]
    assert [by_operations.later(k, 30) for k in range(3)] == [60, 20, 0]
    by_seconds = dataclasses.replace(
        by_operations,
        stages=tuple(
            dataclasses.replace(stage, cost=dataclasses.replace(stage.cost, seconds=2.0 * (k + 1)))
            for k, stage in enumerate(by_operations.stages)
            if stage.cost is not None
        ),
    )
    assert by_seconds.costs() == [1, 2, 3] and by_seconds.later(1, 30) == 15


def test_batches_of_stages_weigh_steps_and_not_epochs() -> None:
    """Three equal stages of batches 8, 4 and 2 whose networks cost 1, 2 and 4 per sample."""
    plan = equal(3).with_batches((8, 4, 2))
    assert plan.batches(64) == [8, 4, 2] and equal(3).batches(64) == [64] * 3 and plan.with_batches(()) is plan
    costs = [StageCost(batch, 0, 0, 0, batch * 2**k, 0, 0, 0, 0) for k, batch in enumerate((8, 4, 2))]
    epochs = dataclasses.replace(
        plan, stages=tuple(dataclasses.replace(s, cost=cost) for s, cost in zip(plan.stages, costs, strict=True))
    )
    steps = dataclasses.replace(epochs, unit="steps")
    assert epochs.costs() == [1, 2, 4] and time_shares(epochs.stages) == pytest.approx((1 / 7, 2 / 7, 4 / 7))
    assert epochs.speedup == pytest.approx(12 / 7) and bound(epochs.stages) == pytest.approx(3)
    # A step of each takes as long, since what a sample costs more there are fewer of.
    assert steps.costs() == [4, 4, 4] and time_shares(steps.stages, unit="steps") == pytest.approx((1 / 3,) * 3)
    assert sample_shares(steps.stages, "steps") == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert steps.speedup == pytest.approx(4 * 7 / 12) and bound(steps.stages, "steps") == pytest.approx(7)
    assert (epochs.later(0, 30), steps.later(0, 30)) == (60, 20)


def test_a_stage_keeps_its_batch_on_disk() -> None:
    plan = equal(2).with_batches((32, 16))
    data = plan.to_json()
    assert [stage["batch"] for stage in data["stages"]] == [32, 16] and Schedule.from_json(data) == plan
    assert all("batch" not in stage for stage in equal(2).to_json()["stages"])
    assert not plan.same_run(equal(2)) and plan.same_run(Schedule.from_json(data))
    for wrong in (0, -1, 1.5, "8", True):
        data["stages"][1]["batch"] = wrong
        with pytest.raises(InputError, match=f"stage 1: batch: expected an integer of at least 1, got {wrong!r}; fix"):
            Schedule.from_json(data)


def test_the_last_place_is_the_full_network() -> None:
    space = Space(VOLO.depths, (), VOLO.resolutions, SHAPES)
    point = space.point(space.last)
    assert point.depths == {"blocks": 18}
    assert point.resolution == (224, 224)
    assert point.unfreeze == Unfreeze("suffix", 4, 4)
    assert len(list(space.places())) == 4 * 4 * 12
    assert Space().empty
    assert not space.empty
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
