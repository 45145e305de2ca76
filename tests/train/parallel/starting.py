"""Commands in real processes that find one another by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

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


def ranks(*arguments: str, processes: int, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """The same command in processes that nothing ends when one of them fails, as srun starts them; in their order."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, *arguments]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
            env={**os.environ, **given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=1800) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]
