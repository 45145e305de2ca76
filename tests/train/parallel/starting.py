"""Commands in real processes that find one another by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def python(*arguments: str, processes: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in processes of one thread each; 0: one process without torchrun."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, timeout=1800, cwd=ROOT, env=environment
    )


def train(run: Path, kind: str, processes: int, at: int = -1) -> str:
    """Runs tests/train/parallel/ranks_script.py; what it printed."""
    script = str(Path(__file__).with_name("ranks_script.py"))
    done = python(script, str(run), kind, str(at), processes=processes)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
