"""One-shot search in `reference` mode: the published formulas, rules and habits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from progc.errors import InputError
from progc.lift.averages import DECAYS, Averages
from progc.schedule import Index, Space
from progc.schedule.point import Point
from progc.search import one_shot_stage
from progc.search.one_shot import copied
from progc.search.supernet import Supernet, nested
from tests.search.test_one_shot import SMALL, equal, program, quick_times, searched, values

__all__ = ["quick_times"]


def test_reference_scores_are_the_published_formulas() -> None:
    found = searched(SMALL, mode="reference", settings={"epochs": 2, "evaluations": None})
    decision = found.decision
    assert decision.settings["evaluations"] == 5 and decision.settings["decay"] == 0.998
    assert found.ema is not None and found.ema.decays == DECAYS and found.ema.num_updates == found.steps == 12
    alpha = decision.settings["alpha"]
    for candidate in decision.candidates:
        five = [candidate.scores[f"loss at step {step}"] for step in (6, 7, 9, 10, 12)]
        assert candidate.scores["loss"] == pytest.approx(sum(five) / 5, rel=1e-12)
        assert candidate.total == pytest.approx(candidate.scores["loss"] * candidate.scores["time"] ** alpha, rel=1e-12)
    totals = [candidate.total for candidate in decision.candidates]
    assert decision.winner == totals.index(min(totals))


def test_reference_measures_time_and_wants_fifty_batches() -> None:
    found = searched(mode="reference", settings={"time": None})
    assert found.decision.settings["time"] == "measured"
    assert all(candidate.scores["time"] > 0 for candidate in found.decision.candidates)
    with pytest.raises(InputError, match="50 batches of 4 are needed, but 24 samples give 6"):
        searched(mode="reference", settings={"batches": None})


def let_win(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Makes one candidate win, whatever its losses are."""
    published = one_shot_stage.published
    monkeypatch.setattr(one_shot_stage, "published", lambda *args: dataclasses.replace(published(*args), winner=place))


def test_reference_drops_moments_and_takes_a_full_winner_from_the_slow_average(monkeypatch: pytest.MonkeyPatch) -> None:
    own = program()
    optimizer = torch.optim.AdamW([t for _, t in own.parameters()], lr=0.1)
    ema = Averages(own)
    space = Space(depths=({"blocks": 2}, {"blocks": 3}, {"blocks": 4}))
    let_win(monkeypatch, 2)
    found = searched(space, mode="reference", program=own, optimizer=optimizer, ema=ema)
    assert found.index.depth == 2 and not optimizer.state
    slow = ema.tensors[0.9996]
    assert equal(values(found.program.parameters()), values({n: slow[n] for n, _ in found.program.parameters()}))


def test_default_keeps_moments() -> None:
    found = searched()
    assert all(found.optimizer.state[t]["step"] > 0 for _, t in found.program.parameters())


def test_reference_recycles_other_layers_than_it_evaluates_and_default_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = Space(depths=tuple({"blocks": depth} for depth in (2, 3, 4)))
    assert nested(2, 4, 3, "deepest") == [0, 2, 3] != nested(3, 4, 3, "deepest") == [0, 1, 2]
    small = Supernet(program(), [Point({"blocks": 2})])
    before = small.recycled(small.members[0])
    let_win(monkeypatch, 0)
    found = searched(space, Index(), "reference", program=copied(before))
    assert found.index.depth == 1
    assert len(found.program.chains["blocks"].blocks) == 3
