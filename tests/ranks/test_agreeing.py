"""Ranks agree on what rank 0 decides: real processes with gloo."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from progc.errors import CheckError, InputError
from progc.ranks.agreeing import agreed

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import json, sys, datetime
import torch.distributed as dist
from progc.errors import ProgcError, CheckError, InputError, TargetError
from progc.ranks.agreeing import agreed
from progc.search.vote import published

class NotKnown(InputError):
    pass

rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=30)
)
calls = []

def answer(times):
    def found():
        calls.append(rank)
        vote = published(times, {"ntk": [2.0, 1.0, 3.0], "zico": [2.0, 3.0, 1.0]})
        return {"winner": vote.winner, "times": times, "nan": float("nan")}
    return found

def failing(error):
    def found():
        if rank == 0:
            raise error
        return None
    return found

def caught(question, make):
    try:
        agreed(question, make)
    except (ProgcError, ZeroDivisionError) as error:
        return [type(error).__name__, getattr(error, "exit_code", None), str(error)]

# The clocks of the two ranks disagree about which candidate is the fastest.
times = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]][rank]
own = published(times, {"ntk": [2.0, 1.0, 3.0], "zico": [2.0, 3.0, 1.0]}).winner
result = {
    "own": own,
    "agreed": agreed("stage 0", answer(times)),
    "target": caught("stage 1", failing(TargetError("stage 1, candidate `a`: too deep"))),
    "check": caught("stage 1", failing(CheckError("stage 1: the loss is nan"))),
    "unknown": caught("stage 1", failing(NotKnown("not counted"))),
    "other": caught("stage 1", failing(ZeroDivisionError("by\\nzero"))),
    "questions": caught(f"stage {rank}", lambda: 1),
    "after": agreed("stage 2", lambda: "a" * 100_000)[:3],
    "calls": len(calls),
}
print(json.dumps(result))
dist.destroy_process_group()
"""


def run_ranks(code: str, *args: str) -> list[dict[str, Any]]:
    """Runs the code as two ranks; the JSON that each prints last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(port), *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank in range(2)
    ]  # fmt: skip
    found = []
    for rank in ranks:
        out, err = rank.communicate(timeout=1800)
        assert rank.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    return found


def test_two_ranks_with_different_clocks_choose_the_same() -> None:
    first, second = run_ranks(WORKER)
    assert first["own"] != second["own"]
    assert first["agreed"]["winner"] == second["agreed"]["winner"] == first["own"]
    assert first["agreed"]["times"] == second["agreed"]["times"] == [0.1, 0.2, 0.3]
    assert math.isnan(second["agreed"]["nan"])
    assert (first["calls"], second["calls"]) == (1, 0)  # rank 1 measured nothing

    assert first["target"] == second["target"] == ["TargetError", 2, "stage 1, candidate `a`: too deep"]
    assert first["check"] == second["check"] == ["CheckError", 1, "stage 1: the loss is nan"]
    assert first["unknown"] == ["NotKnown", 2, "not counted"] and second["unknown"] == ["InputError", 2, "not counted"]
    assert first["other"][0] == "ZeroDivisionError"
    assert second["other"] == ["CheckError", 1, "rank 0 failed: ZeroDivisionError: by zero"]
    assert first["questions"] is None and second["questions"][:2] == ["CheckError", 1]
    assert "rank 0 decides stage 0 and rank 1 stage 1" in second["questions"][2]
    assert first["after"] == second["after"] == "aaa"


def test_without_a_group_one_decides_and_errors_are_its_own() -> None:
    assert agreed("stage 0", lambda: {"winner": (1, 2)}) == {"winner": [1, 2]}
    with pytest.raises(InputError, match="too few"):
        agreed("stage 0", failing)


def failing() -> None:
    raise InputError("too few samples")


def test_an_answer_that_is_no_json_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError):
        agreed("stage 0", lambda: CheckError("x"))
