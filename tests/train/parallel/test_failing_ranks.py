"""Two real processes, of which one fails: both tell whose error it was, in one line and with the same exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import NET
from tests.train.parallel.starting import ranks
from tests.train.parallel.test_ddp import DATA, OPTIONS

LOSS = """
import os, signal
calls = []

def loss(outputs, batch):
    calls.append(0)
    if os.environ["RANK"] == FAILS and len(calls) == 6:
        END
    return torch.nn.functional.cross_entropy(outputs, batch[1])
"""


@pytest.mark.slow  # tests/train/test_failing.py has the smaller sibling
@pytest.mark.parametrize("fails", [0, 1])
def test_both_ranks_tell_of_an_error_of_one(tmp_path: Path, fails: int) -> None:
    text = NET + DATA + LOSS.replace("FAILS", repr(str(fails))).replace("END", 'raise ValueError("bad\\nrow")')
    (tmp_path / "net.py").write_text(text)
    done = ranks("-m", "progc", "train", "net.py:big", *OPTIONS, "--out", "run", processes=2, cwd=tmp_path)
    line = next(number for number, part in enumerate(text.splitlines(), 1) if "raise ValueError" in part)
    message = f"net.py:{line}: ValueError when the file computes its loss: bad row"
    last = [each.stderr.splitlines()[-1] for each in done]
    assert last[fails] == f"progc: error: {message}", last
    assert last[1 - fails] == f"progc: error: rank {fails} ended the run: {message}", last
    assert [each.returncode for each in done] == [3, 3]


@pytest.mark.slow  # as above
def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    end = "os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path / "net.py").write_text(NET + DATA + LOSS.replace("FAILS", "'1'").replace("END", end))
    first, second = ranks("-m", "progc", "train", "net.py:big", *OPTIONS, "--out", "run", processes=2, cwd=tmp_path)
    assert (first.returncode, second.returncode) == (75, -9), first.stderr
    assert "rank 0 lost the connection to another rank" in first.stderr.splitlines()[-1]
