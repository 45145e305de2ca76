"""One rank of a run of four stages, started by torchrun: `RUN KIND AT`.

The AT-th sample of the last rank sends that rank, and no other, a signal.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from progc.train.parallel.processes import opened_parallel
from tests.train.running import Interrupted, samples, trainer


def main(run: Path, kind: str, at: int) -> None:
    parallel = opened_parallel(kind, "cpu")
    last = parallel.rank == parallel.world - 1
    data = Interrupted(samples(72), at if last else -1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = trainer(run, data, parallel=parallel, accumulate=2, log_every=1).fit()
    assert result.signal is None or at > 0
    print(f"step {result.step} finished {result.finished};", flush=True)
    if parallel.world > 1:
        dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    os._exit(0)  # torch's gloo threads now and then abort a process that ends by itself, whatever it did
