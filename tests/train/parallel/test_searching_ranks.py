"""Searches in training on two real processes: both decide alike, as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest

from progc.schedule import Schedule
from tests.sweeps import some
from tests.train.parallel.starting import python
from tests.train.running import lines
from tests.train.searching import STAGES, STEPS, plan, train

KINDS = [(kind, strategy) for kind in ("ddp", "fsdp") for strategy in ("one-shot", "zero-shot")]


# Every boundary and every decision compares hashes over weights, averages and optimizer state of the ranks.
@pytest.mark.parametrize("case", some(KINDS, []), ids=" ".join)
def test_two_ranks_decide_as_one(case: tuple[str, str], tmp_path: Path) -> None:
    kind, strategy = case
    script = str(Path(__file__).with_name("searching_script.py"))
    done = python(script, str(tmp_path / "two"), kind, strategy, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count(f"step {STAGES * STEPS} finished True;") == 2
    train(tmp_path / "one", plan(strategy))
    plans = [Schedule.read(tmp_path / name / "plan.json") for name in ("one", "two")]
    one, two = (schedule.decisions[0].candidates for schedule in plans)
    assert [candidate.point for candidate in one] == [candidate.point for candidate in two]
    losses = [[line["loss"] for line in lines(tmp_path / name) if line["kind"] == "train"] for name in ("one", "two")]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)  # later ones differ: dropout draws other numbers
