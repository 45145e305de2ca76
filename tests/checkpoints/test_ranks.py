"""Ranks save together: the random numbers of each, one writer, one failure for all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_two_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.checkpoints.ranks_script", str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for number, rank in enumerate(ranks):
        out, err = rank.communicate(timeout=1800)
        assert rank.returncode == 0 and out.split() == ["done", str(number)], err
