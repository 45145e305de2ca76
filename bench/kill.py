"""Training under kills: does a run that is killed repeatedly end like an uninterrupted one, bit for bit?

    python bench/kill.py [--kills 200] [--seed 0]

About ten minutes on two cores. A transformer with dropout, stochastic depth and an averaged copy trains in four stages
with growth in depth and width, freezing and unfreezing. A third of the kills happens at random moments, a third at a
call of fsync (inside a save), a third inside boundaries. After every kill the run is resumed by the same call until it
is finished. Weights, averages, optimizer state, random number generators and metrics are then compared with those of
an uninterrupted run. Writes bench/results/kill.json.
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
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-file", action="store_true", help="print only")
    chosen = parser.parse_args()
    from bench.common import write_json
    from tests.train.killing import trial, warm

    full = warm()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(Path(folder), chosen.kills, chosen.seed, full)
    print(found)
    if not chosen.no_file:
        print("written:", write_json("kill", {"seed": chosen.seed, **found}))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
