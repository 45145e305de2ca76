"""What checkpoints cost: seconds for which training waits, saving at once and in the background; seconds to read back.

    python bench/checkpoints.py [--parameters 22000000] [--saves 7]

The state is a stack of linear layers with AdamW and one averaged copy: four 32-bit numbers for each parameter.
Hashing and copying the same bytes are measured for comparison. Writes bench/results/checkpoints.json.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root (for tests.zoo) is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

import progc
from bench.common import write_json
from progc.checkpoints import Saver, State, load, verify

WIDTH = 1024


def state_of(parameters: int) -> State:
    """A trained state of about so many parameters."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(max(1, parameters // (WIDTH * WIDTH + WIDTH)))))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return State(model, optimizer, progc.EMA(model, (0.9999,)))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "max": round(max(values), 4)}


def measure(parameters: int, saves: int) -> dict[str, Any]:
    """Seconds of `saves` saves of each kind, in turns."""
    state = state_of(parameters)
    at_once: list[float] = []
    stalls: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        with Saver(folder, keep=1, background=False) as plain, Saver(folder, keep=1) as saver:
            for number in range(saves):
                at_once.append(seconds(lambda step=2 * number: plain.save(state, step)))  # type: ignore[misc]
                start = time.perf_counter()
                saver.save(state, 2 * number + 1)
                stalls.append(saver.stall)
                saver.wait()
                whole.append(time.perf_counter() - start)
        path = next(Path(folder).glob("step-*"))
        reading = {
            "verify": summary([seconds(lambda: verify(path)) for _ in range(3)]),
            "load_and_restore": summary([seconds(lambda: load(path).restore(state)) for _ in range(3)]),
        }
        size = verify(path).size
    data = torch.zeros(size, dtype=torch.uint8)
    into = torch.zeros_like(data)
    array: Any = data.numpy()
    return {
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),  # type: ignore[misc]
        "bytes": size,
        "saves": saves,
        "seconds": {
            "stall_at_once": summary(at_once),
            "stall_background_first": round(stalls[0], 4),
            "stall_background": summary(stalls[1:]),
            "background_until_complete": summary(whole[1:]),
            **reading,
            "sha256_of_the_bytes": round(seconds(lambda: hashlib.sha256(array).hexdigest()), 4),
            "copy_of_the_bytes": round(seconds(lambda: into.copy_(data)), 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=22_000_000)
    parser.add_argument("--saves", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(chosen.parameters, chosen.saves)
    for name, value in result["seconds"].items():
        print(f"{name:28} {value}")
    print(f"{result['parameters']:,} parameters, {result['bytes']:,} bytes")
    print("written:", write_json("checkpoints", result))


if __name__ == "__main__":
    main()
