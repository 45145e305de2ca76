"""Two real processes: the run of one process, and layers that train later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from progc.cli import main
from tests.command import NET
from tests.train.parallel.starting import python

DATA = """
def datasets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    return (x, x[:, :3].argmax(1)), (x[:32], x[:32, :3].argmax(1))
"""
OPTIONS = [
    "--stages", "2", "--steps", "8", "--stage-batch", "16,8", "--lr", "1e-3",
    "--set", "plan.unfreeze=prefix:2", "--set", "plan.resolutions=none", "--set", "train.compile=eager",
    "--set", "train.log_every=1", "--set", "train.ema=[0.9]", "--set", "train.clip=1.0", "--set", "train.warmup=0.0",
]  # fmt: skip


def metrics(run: Path, kind: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Freezing and unfreezing between stages of other batches; every boundary compares hashes of the ranks."""
    (tmp_path / "net.py").write_text(NET + DATA)
    options = ["train", f"{tmp_path / 'net.py'}:big", *OPTIONS, "--out"]
    assert main([*options, str(tmp_path / "1")]) == 0
    done = python("-m", "progc", *options, str(tmp_path / "2"), processes=2)
    assert done.returncode == 0, done.stderr
    one, two = ([line["loss"] for line in metrics(tmp_path / str(n), "train")] for n in (1, 2))
    assert len(one) == 8
    assert one == pytest.approx(two, rel=1e-4)
    first, second = (metrics(tmp_path / str(n), "boundary") for n in (1, 2))
    assert len(second) == 1 and second[0]["lossless"] is True
    assert first[0]["loss_before"] == pytest.approx(second[0]["loss_before"], rel=1e-4)
    validated = [metrics(tmp_path / str(n), "validation")[-1] for n in (1, 2)]
    assert validated[0]["top1"] == pytest.approx(validated[1]["top1"], abs=0.04)
    assert validated[0]["loss"] == pytest.approx(validated[1]["loss"], rel=1e-3)


DRIFT = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from progc.errors import CheckError
from progc.train.boundary import check_same, digest
from progc.train.parallel.ranks import Ddp

dist.init_process_group("gloo")
naive = sys.argv[1] == "naive"
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
net[0].requires_grad_(False)
optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
parallel = Ddp(torch.device("cpu"))
wrapped = parallel.wrap(net, optimizer, None)
torch.manual_seed(dist.get_rank() + 1)
for step in range(4):
    if step == 2:
        net[0].requires_grad_(True)
        if not naive:
            parallel.unwrap(optimizer, None)
            wrapped = parallel.wrap(net, optimizer, None)
    wrapped(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
try:
    check_same(digest(net, optimizer, None))
    told = "same"
except CheckError as error:
    told = str(error)
if dist.get_rank() == 0:
    print("told:", told, flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow  # the run above freezes and unfreezes in two processes, and its boundaries compare hashes
@pytest.mark.parametrize("way", ["naive", "ours"])
def test_a_layer_that_trains_later_does_not_drift(tmp_path: Path, way: str) -> None:
    """A wrapper that is kept does not reduce the gradients of a layer that was frozen when it was made."""
    script = tmp_path / "drift.py"
    script.write_text(DRIFT)
    done = python(str(script), way, processes=2)
    assert done.returncode == 0, done.stderr
    if way == "naive":
        assert "told: ranks differ from rank 0" in done.stdout and ": 1;" in done.stdout
    else:
        assert "told: same" in done.stdout
