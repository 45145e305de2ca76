"""One rank of a run whose stages are decided in training, started by torchrun: `RUN KIND STRATEGY`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed as dist

from progc.train.parallel.processes import opened_parallel
from tests.train.searching import plan, trainer


def main(run: Path, kind: str, strategy: str) -> None:
    parallel = opened_parallel(kind, "cpu")
    result = trainer(run, plan(strategy), parallel=parallel, save_every=4).fit()
    print(f"step {result.step} finished {result.finished};", flush=True)
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    os._exit(0)  # torch's gloo threads now and then abort a process that ends by itself, whatever it did
