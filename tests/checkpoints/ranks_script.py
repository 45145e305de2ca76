"""Two processes that save together, resume, and fail together: `torchrun`'s environment, gloo."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from progc.checkpoints import Saver, State, load, save
from progc.errors import InputError


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    random.seed(rank)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 2))
    torch.manual_seed(100 + rank)
    state = State(model, torch.optim.SGD(model.parameters(), momentum=0.9))
    model(torch.ones(1, 3)).sum().backward()
    assert not isinstance(state.optimizer, dict) and state.optimizer is not None
    state.optimizer.step()  # type: ignore[union-attr]
    with Saver(folder / "run") as saver:
        saver.save(state, 1)
    drawn = torch.rand(3).tolist(), random.random()
    found = load(folder / "run" / "step-00000001")
    assert found.manifest.world == 2 and "rng-00001.json" in found.manifest.files
    found.restore(state)
    assert (torch.rand(3).tolist(), random.random()) == drawn
    seen: list[object] = [None, None]
    dist.all_gather_object(seen, drawn)
    assert seen[0] != seen[1]

    (folder / "file").write_text("")
    for background in (True, False):
        saver = Saver(folder / "file" / "run", background=background)
        try:
            saver.save(state, 2)
            saver.close()
        except InputError as error:
            assert ("rank 0: " in str(error)) == (rank == 1), error
        else:
            raise AssertionError("the failure of rank 0 was not said")
    assert save(folder / "run", state, 3) == folder / "run" / "step-00000003"
    dist.destroy_process_group()
    print("done", rank, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # torch's gloo threads now and then abort a process that ends by itself, whatever it did
