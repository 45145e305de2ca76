"""What a zero-shot search chooses for given scores, in both modes, and how it refuses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import progc
import progc.schedule.costing
import progc.schedule.timing
from progc.data.task import Task
from progc.errors import CheckError, InputError, TargetError
from progc.ir.program import Program
from progc.schedule import Index, Space
from progc.search import probing, zero_shot
from progc.search.zero_shot import decide, search
from tests.schedule.small import INTERLEAVED, Planted, digits, fresh, less, levels, more, plant_scores, transformer

Plant = Callable[..., dict[str, Planted]]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """`plant_scores` for one test."""
    return functools.partial(plant_scores, monkeypatch)


def names(space: Space, places: list[Index]) -> list[str]:
    return [str(space.point(place)) for place in places]


# -- the vote in a search ---------------------------------------------------------------------------------------------


def test_reference_collapses_to_the_smallest_and_default_does_not(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    settings = {"time": "predicted"}
    places, decisions = search(transformer(), INTERLEAVED, digits(), stages=4, mode="reference", settings=settings)
    assert names(INTERLEAVED, places) == [f"interleave:{level}/4" for level in (1, 1, 1, 4)]
    assert [candidate.total for candidate in decisions[0].candidates] == [3.0, 3.0]
    assert "the fastest of these" in decisions[0].reason
    places, _ = search(transformer(), INTERLEAVED, digits(), stages=4)
    assert names(INTERLEAVED, places) == [f"interleave:{level}/4" for level in (2, 3, 4, 4)]
    plant(ntk=less, zico=less)
    places, _ = search(transformer(), INTERLEAVED, digits(), stages=4)
    assert names(INTERLEAVED, places) == [f"interleave:{level}/4" for level in (1, 1, 1, 4)]


def test_where_proxies_disagree_on_two_candidates_time_decides(plant: Plant) -> None:
    plant(ntk=more, zico=less)
    assert search(transformer(), INTERLEAVED, digits(), stages=3)[0][0].unfreeze == 0
    settings = {"weights": {"zico": 0.1}}
    assert search(transformer(), INTERLEAVED, digits(), stages=3, settings=settings)[0][0].unfreeze == 1
    settings = {"weights": "zico:0.1, ntk:1", "price": 1.0}
    assert search(transformer(), INTERLEAVED, digits(), stages=3, settings=settings)[0][0].unfreeze == 0


def test_end_to_end_is_the_mean_of_this_step_and_the_full_one() -> None:
    decision = search(transformer(), INTERLEAVED, digits(), stages=2)[1][0]
    full = progc.schedule.costing.predicted_seconds(transformer())
    for candidate in decision.candidates:
        assert candidate.scores["end_to_end"] == pytest.approx((1 + candidate.scores["time"] / full) / 2)
        program = zero_shot.stage_program(transformer(), candidate.point)
        assert candidate.scores["time"] == progc.schedule.costing.predicted_seconds(program) < full


def test_measured_time_is_an_option(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(ntk=more, zico=more)
    calls: list[dict[str, Any]] = []

    def slow(program: Program, task: Task, **options: Any) -> float:
        calls.append(options)
        return 1.0 + len(calls)

    monkeypatch.setattr(progc.schedule.timing, "step_time", slow)
    decision = decide(
        transformer(), INTERLEAVED, None, digits(), stage=0, stages=3, batch=8, settings={"time": "measured"}
    )[1]
    assert [candidate.scores["time"] for candidate in decision.candidates] == [2.0, 3.0]
    assert [call["batch"] for call in calls] == [8, 8, 8]  # the third is the full network
    assert [c.scores["end_to_end"] for c in decision.candidates] == [0.75, 0.875]


def test_a_depth_and_resolution_space(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    space = Space(depths=({"blocks": 2}, {"blocks": 4}), unfreeze=levels("prefix", of=2))
    places, decisions = search(transformer(), space, digits(), stages=3)
    assert {candidate.point.depths["blocks"] for candidate in decisions[0].candidates} == {2, 4}
    assert places[-1] == space.last


# -- the published procedure ------------------------------------------------------------------------------------------


def test_reference_takes_the_first_samples_and_measures_duplicates_twice(plant: Plant) -> None:
    proxies = plant(ntk=more, zico=more)
    _, decision = decide(
        transformer(), INTERLEAVED, None, digits(), stage=0, stages=4, mode="reference", seed=6,
        settings={"time": "predicted"},
    )  # fmt: skip
    assert len(decision.candidates) == 2  # voted on once
    for place, name in enumerate(("ntk", "zico")):
        seen = proxies[name].seen
        assert len(seen) == 4 and [item["seed"] for item in seen] == [6, 7, 6, 7]
        for item in seen:
            images = torch.cat([batch[0] for batch in item["batches"]])
            expected = torch.stack([image for image, _ in digits().samples[32 * place : 32 * (place + 1)]])
            assert len(item["batches"]) == 2 and torch.equal(images, expected)


def test_default_shows_the_same_shuffled_samples_to_all(plant: Plant) -> None:
    proxies = plant(ntk=more, zico=more)
    decide(transformer(), INTERLEAVED, None, digits(), stage=0, stages=4, seed=6, settings={"samples": 8, "batches": 3})
    expected = [batch[1].tolist() for batch in digits().batches(8, seed=6, count=3)]
    for proxy in proxies.values():
        assert [[batch[1].tolist() for batch in item["batches"]] for item in proxy.seen] == [expected] * 2


def test_published_time_is_the_mean_of_six_steps_without_a_warm_up() -> None:
    ticks = iter([0.0, 9.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0, 40.0, 41.0, 50.0, 51.0])
    batches = list(digits().batches(4, seed=0, count=6))
    program = fresh(transformer())
    assert probing.published_time(program, batches, digits(), None, lambda: next(ticks)) == pytest.approx(14 / 6)
    assert next(ticks, None) is None and all(tensor.grad is None for _, tensor in program.parameters())


def test_reference_measures_and_needs_ten_batches(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    decision = search(transformer(), INTERLEAVED, digits(), stages=2, mode="reference")[1][0]
    assert decision.settings["time"] == "measured"
    assert all(0 < candidate.scores["time"] < 10 for candidate in decision.candidates)
    with pytest.raises(InputError, match="10 batches of 16 are needed, but 159 samples give 9"):
        search(transformer(), INTERLEAVED, digits(159), stages=2, mode="reference")


def test_the_stage_identifier_gets_the_present_stage(plant: Plant) -> None:
    for stage in ("input", "0"):
        proxies = plant(ntk=more, zico=more)
        program = progc.apply(transformer(), f"inject-sid{{stages=3 stage={stage}}}")
        search(program, INTERLEAVED, digits(), stages=4)
        seen = proxies["ntk"].seen
        assert [item["stage"] for item in seen] == [0, 0, 1, 1, 2, 2]  # three rows, so the last stays
        if stage == "0":
            assert [item["sid"].stage for item in seen] == [0, 0, 1, 1, 2, 2]


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_names_stage_candidate_and_batch(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    samples = list(digits().samples[:64])
    order = [batch[1] for batch in Task(list(zip(range(64), range(64), strict=True))).batches(16, seed=0, count=2)]
    bad = int(order[1][3])
    samples[bad] = (torch.full((1, 8, 8), torch.nan), samples[bad][1])
    with pytest.raises(CheckError) as caught:
        search(transformer(), INTERLEAVED, Task(samples), stages=3)
    text = str(caught.value)
    assert caught.value.exit_code == 1 and "\n" not in text
    assert text.startswith("stage 0, candidate `interleave:1/4`: the loss is nan on batch 2 of 2; ")


def test_a_loss_that_is_no_scalar(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    task = Task(digits().samples, loss=lambda outputs, batch: outputs)
    with pytest.raises(InputError, match=r"expected a scalar tensor, got a tensor \[16, 10\]; fix loss"):
        search(transformer(), INTERLEAVED, task, stages=3)


def test_scores_that_are_nan(plant: Plant) -> None:
    plant(ntk=lambda share: math.nan if share > 0.5 else 1.0, zico=more)
    decision = search(transformer(), INTERLEAVED, digits(), stages=2)[1][0]
    assert [candidate.ranks["ntk"] for candidate in decision.candidates] == [1.0, 2.0]
    assert "; ntk of interleave:2/4 could not be computed and ranks last" in decision.reason
    plant(ntk=lambda share: math.nan, zico=lambda share: math.nan)
    with pytest.raises(CheckError, match="stage 0: ntk, zico are NaN for every candidate"):
        search(transformer(), INTERLEAVED, digits(), stages=2)


def test_nothing_to_choose_from(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = plant(ntk=more, zico=more)
    with pytest.raises(InputError, match="the space has a single point"):
        search(transformer(), Space(), digits(), stages=3)
    assert search(transformer(), Space(), digits(), stages=1) == ([Index()], [])
    index, decision = decide(transformer(), INTERLEAVED, INTERLEAVED.last, digits(), stage=2, stages=4)
    assert index == INTERLEAVED.last and decision.reason == "interleave:4/4 is the only candidate"
    index, decision = decide(transformer(), INTERLEAVED, Index(), digits(), stage=3, stages=4)
    assert index == INTERLEAVED.last and decision.reason == "the last stage is the full network"
    assert not proxies["ntk"].seen
    with pytest.raises(InputError, match="expected a stage from 0 to 3, got 4"):
        decide(transformer(), INTERLEAVED, Index(), digits(), stage=4, stages=4)
    monkeypatch.setattr("progc.search.candidates.zero_shot_candidates", lambda *args: [])
    with pytest.raises(InputError, match="stage 0: there are no candidates"):
        search(transformer(), INTERLEAVED, digits(), stages=3)


def test_a_candidate_that_the_network_cannot_be(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    space = Space(depths=({"blocks": 2}, {"blocks": 9}))
    with pytest.raises(TargetError, match=r"^stage 0, candidate `blocks:9`: ") as caught:
        search(transformer(), space, digits(), stages=3)
    assert "\n" not in str(caught.value)


def test_no_task_and_no_weights(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    told: list[str] = []
    with pytest.raises(InputError, match="needs samples and a loss"):
        search(transformer(), INTERLEAVED, None, stages=3, progress=told.append)
    assert told == ["score stage 0, candidate `interleave:1/4`"]
    program = transformer()
    empty = program.replace(tensors={name: tensor.to("meta") for name, tensor in program.tensors.items()})
    with pytest.raises(InputError, match="not in memory"):
        search(empty, INTERLEAVED, digits(), stages=3)


def test_proxies_that_cannot_tell_trainable_sets_apart(plant: Plant) -> None:
    proxies = plant(ntk=more, zico=more)
    for proxy in proxies.values():
        proxy.ranks_unfreezing = False
    with pytest.raises(InputError, match="do not depend on which blocks train"):
        search(transformer(), INTERLEAVED, digits(), stages=3)
    space = Space(depths=({"blocks": 2}, {"blocks": 4}))
    search(transformer(), space, digits(), stages=2)


@pytest.mark.parametrize(
    ("settings", "mode", "message"),
    [
        ({"proxys": "ntk"}, "default", "unknown setting `proxys`; did you mean proxies?"),
        ({"proxies": ""}, "default", "expected one or more names such as ntk,zico, got none"),
        ({"proxies": "ntk,zicko"}, "default", "no proxy `zicko`; did you mean zico?"),
        ({"proxies": 3}, "default", "proxies: expected names such as ntk,zico"),
        ({"time": "mesured"}, "default", "expected predicted or measured, got 'mesured'; did you mean measured?"),
        ({"samples": 0}, "default", "samples: expected an integer of at least 1, got 0"),
        ({"batches": True}, "default", "batches: expected an integer of at least 1, got True"),
        ({"batches": 3}, "reference", "the mode reference has no setting batches"),
        ({"price": 1.2}, "reference", "the mode reference has no setting price"),
        ({"price": 0.9}, "default", "price: expected a number of at least 1, got 0.9"),
        ({"price": math.nan}, "default", "price: expected a number of at least 1, got nan"),
        ({"weights": {"time": 2}}, "default", "time has a price instead of a weight"),
        ({"weights": {"ntq": 2}}, "default", "unknown score `ntq`; did you mean ntk?"),
        ({"weights": {"ntk": -1}}, "reference", "weight of ntk: expected a number of at least 0, got -1"),
        ({"weights": {"ntk": 0, "zico": 0}}, "default", "all proxies have weight 0"),
        ({"weights": [1]}, "default", "expected a text such as ntk:1,zico:0.5, got [1]"),
        ({"weights": "ntk"}, "default", "expected a text such as ntk:1,zico:0.5, got 'ntk'"),
        ({}, "fast", "mode: expected default or reference, got 'fast'"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], mode: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        search(transformer(), INTERLEAVED, digits(), stages=3, mode=mode, settings=settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_samples(plant: Plant) -> None:
    plant(ntk=more, zico=more)
    with pytest.raises(InputError, match="2 batches of 16 are needed, but 31 samples give 1"):
        search(transformer(), INTERLEAVED, digits(31), stages=3)
