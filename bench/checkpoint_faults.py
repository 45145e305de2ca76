"""Checkpoints under kills, damage and races: how often something wrong was loaded, or something good was lost.

    python bench/checkpoint_faults.py [--damages 1000] [--kills 200] [--races 50] [--seed 0]

About ten minutes on two cores. Damage: single bits, truncations, appended bytes, zeroed blocks, missing files, files
swapped between and within checkpoints, links, extra files, old folders under newer names. Each time the previous
checkpoint must be used, and a message must name the file. Kills: SIGKILL at random moments of a process that only
saves. Races: two processes save one step with different contents. Writes bench/results/checkpoint_faults.json.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root (for tests.zoo) is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.common import write_json
from progc.checkpoints import save
from tests.checkpoints import faults, killing
from tests.checkpoints.running import new_state, train


def damages(count: int, seed: int) -> dict[str, Any]:
    """`count` damages, half of them single bits."""
    rng = random.Random(seed)
    others = [kind for kind in faults.DAMAGES if kind != "bit"]
    tried: dict[str, int] = {}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        state = new_state()
        for step in range(1, 4):
            train(state, 1)
            save(folder, state, step)
        for number in range(count):
            kind = "bit" if number % 2 else others[number // 2 % len(others)]
            tried[kind] = tried.get(kind, 0) + 1
            reason = faults.trial(Path(folder), kind, rng)
            if reason is not None:
                wrong.append(reason)
    return {"tried": tried, "damages": count, "detected": count - len(wrong), "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("damages", 1000), ("kills", 200), ("races", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    killing.warm()  # before anything makes a thread: children are forked
    results: dict[str, Any] = {"seed": chosen.seed}
    with tempfile.TemporaryDirectory() as folder:
        results["kills"] = killing.kill(Path(folder) / "run", chosen.kills, chosen.seed)
        print("kills:", results["kills"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results["races"] = killing.race(Path(folder) / "run", chosen.races)
        print("races:", results["races"], flush=True)
    results["damages"] = damages(chosen.damages, chosen.seed)
    print("damages:", results["damages"])
    print("written:", write_json("checkpoint_faults", results))


if __name__ == "__main__":
    main()
