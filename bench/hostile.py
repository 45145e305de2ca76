"""Runs every command that reads files on harmful ones, and counts those refused in one line without running code.

    python bench/hostile.py [--out FILE]

The cases are in tests/hostile_files.py. Writes bench/results/hostile.json: the number of cases and what went wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "hostile.json")
    given = parser.parse_args()

    from bench.common import machine
    from tests.hostile_files import cases, trial

    wrong, count, commands = [], 0, set()
    with tempfile.TemporaryDirectory() as folder:
        for count, case in enumerate(cases(), 1):
            commands.add(case[1].rsplit(": ", 1)[-1])
            found = trial(case, Path(folder) / str(count))
            if found is not None:
                wrong.append(found)
                print(found, flush=True)
    result = {**machine(), "cases": count, "right": count - len(wrong), "commands": sorted(commands), "wrong": wrong}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['right']} of {count}: {given.out}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
