"""Searches that are part of training: what they decide, what they cost, and runs that are resumed inside one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from progc.errors import InputError
from progc.schedule import Schedule
from progc.search.online import SupernetStage, position
from progc.train.settings import Settings
from progc.train.trainer import Trainer
from tests.sweeps import some
from tests.train.running import lines
from tests.train.searching import SEARCH, STAGES, STEPS, network, plan, train, trainer

STRATEGIES = ["one-shot", "zero-shot"]


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with a checkpoint of every step; its folder has the name of the strategy."""
    run = tmp_path_factory.mktemp("whole") / str(request.param)
    result = train(run, plan(request.param))
    assert result.finished and result.step == STAGES * STEPS  # a search takes no step more
    return run


def decisions(run: Path) -> list[dict[str, object]]:
    return [line for line in lines(run) if line["kind"] == "decision"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Trained and averaged weights."""
    return {f"{path.name} {name}": t for path in run.glob("*.safetensors") for name, t in load_file(path).items()}


def same(run: Path, other: Path) -> bool:
    ours, theirs = weights(run), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_plan_is_completed_while_the_run_decides(whole: Path) -> None:
    given, found = plan(whole.name), Schedule.read(whole / "plan.json")
    assert given.open == (0, 1) and found.open == () and found.same_run(given)
    assert [stage.decided for stage in found.stages] == ["training", "training", "plan"]
    assert [decision.stage for decision in found.decisions] == [0, 1]
    for decision, line in zip(found.decisions, decisions(whole), strict=True):
        assert decision.candidates[decision.winner].point == found.stages[decision.stage].point
        assert (line["stage"], line["reason"]) == (decision.stage, decision.reason)
        assert position(found, decision.stage) is not None
    after_search = SEARCH if whole.name == "one-shot" else 0
    assert [line["step"] for line in decisions(whole)] == [after_search, STEPS + after_search]
    assert found.stages[0].cost is not None and found.stages[0].cost.batch == found.stages[2].cost.batch  # type: ignore[union-attr]


def test_scores_are_those_of_the_moment(whole: Path) -> None:
    """Candidates that both stages had: a search before training would score them alike."""
    first, second = Schedule.read(whole / "plan.json").decisions
    name = "loss" if whole.name == "one-shot" else "ntk"
    both = {c.point: c.scores[name] for c in first.candidates}
    pairs = [(both[c.point], c.scores[name]) for c in second.candidates if c.point in both and c.scores]
    assert pairs and all(one != other for one, other in pairs)


def test_the_supernet_trains_what_the_run_continues_with(tmp_path: Path) -> None:
    """A fresh run of the plan that came out has other weights: its stages began without a supernet."""
    one = tmp_path / "one-shot"
    train(one, plan("one-shot"), save_every=None)
    repeated = tmp_path / "repeated"
    train(repeated, Schedule.read(one / "plan.json").closed, save_every=None)
    assert not decisions(repeated) and not same(one, repeated)
    assert [line["step"] for line in lines(repeated) if line["kind"] == "train"] == list(range(1, STAGES * STEPS + 1))


def test_what_a_run_tells_and_counts_of_its_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages count from 1, a decision is told once, and its seconds include all evaluations of candidates."""
    run = tmp_path / "run"
    train(run, plan("one-shot"), save_every=None)
    told = capsys.readouterr().err
    for stage, decision in enumerate(Schedule.read(run / "plan.json").decisions, 1):
        assert f"search of stage {stage}: step {SEARCH} of {SEARCH}, lowest loss " in told
        assert told.count(f"stage {stage} is decided: {decision.reason}\n") == 1
    assert "stage 0" not in told and "search: " not in told
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [line["measured"]["seconds_search"] for line in written if line["kind"] == "decision"]
    assert counted == [decision.seconds for decision in Schedule.read(run / "plan.json").decisions]


def test_zero_shot_changes_nothing_else(tmp_path: Path) -> None:
    """A fresh run of the plan that came out is the same to the bit: deciding draws no number of the run's."""
    train(tmp_path / "one", plan("zero-shot"), save_every=None)
    train(tmp_path / "two", Schedule.read(tmp_path / "one" / "plan.json").closed, save_every=None)
    assert same(tmp_path / "one", tmp_path / "two")


RESUMED = [1, SEARCH - 1, SEARCH, SEARCH + 1, STEPS, STEPS + 2, STEPS + SEARCH]


@pytest.mark.parametrize("step", some(RESUMED, [SEARCH, STEPS + 2]))
def test_a_run_resumes_at_any_step(whole: Path, tmp_path: Path, step: int) -> None:
    """In a search, at its end, after the decision, at a boundary; the plan in the folder may be further."""
    run = tmp_path / whole.name
    shutil.copytree(whole, run)
    for path in run.iterdir():
        if path.name.startswith("step-") and int(path.name[5:13]) > step:
            shutil.rmtree(path)
        elif path.name.startswith("model"):
            path.unlink()
    train(run, Schedule.read(run / "plan.json"))
    assert same(run, whole) and lines(run) == lines(whole)
    assert Schedule.read(run / "plan.json").stages == Schedule.read(whole / "plan.json").stages


@pytest.mark.parametrize("where", some(["choose", "evaluate", "finish"], ["evaluate"]))
def test_a_signal_in_a_search_saves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """No checkpoint but the one of the signal; then the same command again."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, plan("one-shot"), save_every=None)
    own = getattr(SupernetStage, where)

    def asked(search: SupernetStage, *args: int) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return own(search, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SupernetStage, where, asked)
        stopped = train(run, plan("one-shot"), save_every=None)
    assert not stopped.finished and stopped.signal == signal.SIGTERM
    assert stopped.step == {"choose": 1, "evaluate": 1, "finish": SEARCH}[where]
    assert train(run, plan("one-shot"), save_every=None).finished
    assert same(run, whole)


def test_a_run_that_dies_before_its_first_checkpoint_decides_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    decided = tmp_path / "decided"
    train(decided, plan("zero-shot"), save_every=None)
    shutil.copy(decided / "plan.json", run)
    train(run, Schedule.read(run / "plan.json"), save_every=None)
    assert len(decisions(run)) == 2 and same(run, decided)


def test_reference_follows_the_published_order(tmp_path: Path) -> None:
    """Growth from the slow average, moments dropped at every change, a winner that may be another sub-network."""
    run = tmp_path / "run"
    train(run, plan("one-shot", "reference"), ema=(0.5, 0.9), save_every=None)
    found = Schedule.read(run / "plan.json")
    assert [decision.settings["growth"] for decision in found.decisions] == ["none", "mogrow"]
    first, second = (stage.point.depths["blocks"] for stage in found.stages[:2])
    assert second > first or first == 4  # depth grows at every stage as long as it can


def test_a_search_that_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    long = plan("one-shot")
    long = Schedule.from_json({**long.to_json(), "settings": {**long.settings, "epochs": 2.0}})
    with pytest.raises(InputError, match=r"search of stage 0 takes 8 steps, but the stage has 6; .*epochs=1\.5\)"):
        trainer(tmp_path / "run", long)
    assert not (tmp_path / "run").exists()


def test_an_open_plan_needs_samples() -> None:
    import progc

    with pytest.raises(InputError, match="stage 0 is decided in training by one-shot, which needs samples"):
        progc.stages(network(), plan("one-shot"))


def test_another_plan_is_another_run(tmp_path: Path) -> None:
    train(tmp_path / "run", plan("zero-shot"), save_every=None)
    with pytest.raises(InputError, match="was trained with another schedule"):
        train(tmp_path / "run", plan("one-shot"))


def test_settings_are_those_of_the_run() -> None:
    """`Trainer` hands the run's batch to the search: losses are evaluated in micro-batches."""
    made = trainer(Path("unused"), plan("one-shot"), accumulate=2)
    assert isinstance(made, Trainer) and isinstance(made.settings, Settings)
    assert made._online is not None and (made._online.batches, made._online.parts) == ([16] * STAGES, 2)
    assert made._online.length(0) == SEARCH
