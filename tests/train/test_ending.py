"""When a run ends: signals are agreed on by all ranks, one step later than they are asked for, without waiting."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from progc.checkpoints import latest, load
from progc.train.boundary import Crossing
from progc.train.ending import Ending
from progc.train.keeping import Keeping
from progc.train.parallel import Single
from progc.train.run_folder import Asked
from progc.train.trainer import Trainer
from tests.train.parallel.starting import python
from tests.train.running import STEPS, trainer

CPU = torch.device("cpu")


class Recorded(Single):
    """A rank of two whose other rank is asked to end at a given question; what it was asked, in order."""

    world = 2

    def __init__(self, other: int = -1) -> None:
        super().__init__(CPU)
        self.told: list[str] = []
        self.under_way = 0
        self._questions, self._other = 0, other

    def any(self, flag: bool) -> bool:
        assert not self.under_way, "a message is under way"
        self.told.append("now")
        return self._answer(flag)

    def asked(self, flag: bool) -> Callable[[], bool]:
        assert not self.under_way, "two messages are under way"
        self.told.append("asked")
        self.under_way += 1
        found = self._answer(flag)

        def answer() -> bool:
            self.told.append("answered")
            self.under_way -= 1
            return found

        return answer

    def _answer(self, flag: bool) -> bool:
        self._questions += 1
        return flag or self._questions == self._other


def test_the_answer_comes_at_the_next_step() -> None:
    ranks, asked = Recorded(), Asked()
    ending = Ending(asked, ranks)
    assert not ending.later() and ranks.told == ["asked"]
    assert not ending.later() and ranks.told == ["asked", "answered", "asked"]
    asked(signal.SIGTERM, None)
    assert not ending.later()  # the others do not know of it yet
    assert ending.later() and ranks.under_way == 0
    assert ending.later() and ending.now()  # and it stays so
    assert ranks.told.count("asked") == 3


def test_a_signal_to_another_rank_ends_this_one() -> None:
    ranks = Recorded(other=2)
    ending = Ending(Asked(), ranks)
    assert [ending.later() for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("other", [1, 2], ids=["asked before", "asked now"])
def test_where_ranks_wait_they_know_at_once(other: int) -> None:
    """And nothing is under way afterwards, so that a checkpoint or a boundary can follow."""
    ranks = Recorded(other)
    ending = Ending(Asked(), ranks)
    ending.later()
    assert ending.now() and ranks.under_way == 0
    assert ranks.told == (["asked", "answered"] if other == 1 else ["asked", "answered", "now"])


def test_settled_is_settled() -> None:
    ranks = Recorded()
    ending = Ending(Asked(), ranks)
    ending.settle()
    ending.later()
    ending.settle()
    assert ranks.under_way == 0 and ranks.told == ["asked", "answered"]


def test_a_process_alone_knows_at_once() -> None:
    asked = Asked()
    ending = Ending(asked, Single(CPU))
    assert not ending.later() and not ending.now()
    asked(signal.SIGTERM, None)
    assert ending.later() and ending.now()


def test_nothing_is_under_way_at_saves_boundaries_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run of one rank of two: validations, checkpoints between and at boundaries, and steps without either."""
    ranks = Recorded()
    quiet = []

    def checked(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            assert not ranks.under_way, name
            quiet.append(name)
            return function(*args, **options)

        return call

    for owner, name in ((Keeping, "save"), (Keeping, "mark_best"), (Crossing, "close"), (Trainer, "_finish")):
        monkeypatch.setattr(owner, name, checked(name, getattr(owner, name)))
    assert trainer(tmp_path, parallel=ranks).fit().finished
    assert ranks.under_way == 0 and set(quiet) == {"save", "mark_best", "close", "_finish"}
    assert ranks.told.count("asked") == ranks.told.count("answered") > 4 * STEPS // 2


def test_a_run_follows_a_signal_to_another_rank(tmp_path: Path) -> None:
    """It saves, and leaves one step after the one in which that rank was asked."""
    ranks = Recorded(other=3)  # the first question is asked before the first step
    stopped = trainer(tmp_path, parallel=ranks, save_every=None)
    result = stopped.fit()
    assert not result.finished and result.step == 3 and ranks.under_way == 0
    found = latest(tmp_path)
    assert found is not None and load(found).manifest.step == 3
    assert trainer(tmp_path, parallel=Recorded()).fit().finished


RANKS = """
import os, sys
import torch, torch.distributed as dist
from progc.train.ending import Ending
from progc.train.parallel.ranks import Ddp
from progc.train.run_folder import Asked

dist.init_process_group("gloo")
parallel, asked, ends = Ddp(torch.device("cpu")), Asked(), []
ending = Ending(asked, parallel)
for step in range(8):
    if step == 3 and parallel.rank == 1:
        asked(15, None)
    if ending.later():
        break
    parallel.mean(torch.ones(4))  # other messages of the step come in between
print("ended", step, ending.now(), flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow  # for each commit: the runs of test_ddp.py ask in every step, too
def test_two_processes_end_at_the_same_step(tmp_path: Path) -> None:
    """Only one of them got the signal, before the fourth step."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = python(str(script), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("ended 4 True") == 2
