"""Training under kills: does a run that is killed repeatedly end like an uninterrupted one, bit for bit?

    python bench/kill.py [--kills 200] [--seed 0]
    python bench/kill.py --search [--kills 40]

About ten minutes on two cores. A transformer with dropout, stochastic depth and an averaged copy trains in four stages
with growth in depth and width, freezing and unfreezing. A third of the kills happens at random moments, a third at a
call of fsync (inside a save), a third inside boundaries. After every kill the run is resumed by the same call until it
is finished. Weights, averages, optimizer state, random number generators and metrics are then compared with those of
an uninterrupted run. Writes bench/results/kill.json.

With `--search` a convolutional network trains in three stages of which two are decided by one-shot searches in
training. Further kills happen while the supernet trains, while candidates are evaluated, and where the winner is
chosen. Writes bench/results/kill_search.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root (for tests) is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="number of kills (default 200, with --search 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", action="store_true", help="runs whose stages are decided in training")
    parser.add_argument("--no-file", action="store_true", help="print only")
    chosen = parser.parse_args()
    chosen.kills = chosen.kills or (40 if chosen.search else 200)
    from bench.common import write_json
    from progc.schedule import Schedule
    from tests.train import searching
    from tests.train.killing import SEARCHING, forked, trial, warm

    with tempfile.TemporaryDirectory() as folder:
        if chosen.search:
            full, file = searching.network(), Path(folder) / "plan.json"
            # In a child: counting costs starts autograd's threads, and a process with threads cannot be forked.
            code = forked(lambda: searching.plan("one-shot").write(file), Path(folder) / "log")
            assert code == 0, (Path(folder) / "log").read_text()
            plan = Schedule.read(file)
            found = trial(
                Path(folder), chosen.kills, chosen.seed, full,
                lambda run, _: searching.train(run, plan, save_every=2), SEARCHING,
            )  # fmt: skip
        else:
            found = trial(Path(folder), chosen.kills, chosen.seed, warm())
    print(found)
    if not chosen.no_file:
        print("written:", write_json("kill_search" if chosen.search else "kill", {"seed": chosen.seed, **found}))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
