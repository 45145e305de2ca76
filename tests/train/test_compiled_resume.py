"""A run of compiled stages, interrupted and resumed in another process equals an uninterrupted run bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.running import lines, outcome

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import os, signal, sys
from pathlib import Path

import torch
from torch import nn

import progc
from progc.schedule import ModelRef, Point, Schedule, Space, Stage
from tests.train.running import Interrupted

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = nn.Linear(8, 8), nn.Dropout(0.2)
    def forward(self, x):
        return x + self.drop(torch.tanh(self.inner(x)))

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(*(Block() for _ in range(3))), nn.Linear(8, 4))
program = progc.capture(model, (torch.randn(4, 6),))
(chain,) = program.chains
stages = tuple(Stage(k, Point({chain.name: depth}), 0.5) for k, depth in enumerate((2, 3)))
plan = Schedule(ModelRef.of(program), "linear", stages, Space(), total=6, unit="steps")
samples = torch.utils.data.TensorDataset(torch.randn(32, 6), torch.randint(4, (32,)))
run, last = Path(sys.argv[1]), int(sys.argv[2])
data = Interrupted(samples, last * 8, lambda: os.kill(os.getpid(), signal.SIGTERM)) if last else samples
settings = progc.Settings(batch=8, ema=(0.9,), compile="regions", keep=None, log_every=1, ahead=False)
trainer = progc.Trainer(plan, program=program, task=progc.Task(data, validation=samples), run=run, settings=settings)
print(trainer.fit().step, "compiled:", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow  # three processes with Inductor; tests/train/test_ahead.py has the one of each commit
def test_a_compiled_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Stopped inside the second stage, whose weights grew out of the first one's."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    told = []
    for name, last in (("whole", 0), ("stopped", 5), ("stopped", 0)):
        command = [sys.executable, "-c", RUN, str(tmp_path / name), str(last)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and "torch.compile failed" not in done.stderr, done.stderr
        step, _, graphs = done.stdout.split()
        told.append(int(step))
        assert int(graphs) >= 3  # stem, block, head
    assert told[0] == told[2] == 6 and 3 < told[1] < 6
    whole, stopped = (outcome(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert [name for name in whole if not torch.equal(whole[name], stopped[name])] == []
    assert lines(tmp_path / "whole") == lines(tmp_path / "stopped")
