"""Growth from model to model: every pair of published sizes that could work, what happens, and why not.

    python bench/pairs.py                      # all pairs, two processes; writes docs/pairs.md
    python bench/pairs.py --only 'timm:swin*'  # pairs whose source, target or family matches
    python bench/pairs.py --list               # the pairs, without running them
    python bench/pairs.py --table              # only writes docs/pairs.md from what is recorded
    python bench/pairs.py --also DIGEST        # also use rows of that code, if there is no newer one

Families are in bench/pair_lists.py. Pairs are neighbours of a series, pairs in which the second model has every tensor
of the first at the same size or larger, one long jump per family, and a few named ones. Each family runs in a separate
process with limits on time and memory. Results are kept pair by pair in bench/results/pairs.jsonl, each with a digest
of the code that made it; a run that is repeated with the same code and libraries resumes. Writes
bench/results/pairs.json and docs/pairs.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import RESULTS, machine, write_json
from bench.pair_lists import FAMILIES, NAMED

ROOT = Path(__file__).resolve().parent.parent
LOG = RESULTS / "pairs.jsonl"
PAGE = ROOT / "docs/pairs.md"
MEASURED = 40_000_000
SECONDS = 240
GIGABYTES = 10


def version() -> str:
    """Names the code and the libraries: results of another version do not count."""
    digest = hashlib.sha256()
    for top in ("progc", "passes", "models"):
        for path in sorted((ROOT / top).rglob("*.py")):
            digest.update(path.read_bytes())
    versions = {k: v for k, v in machine()["versions"].items() if k != "numpy"}
    return f"{digest.hexdigest()[:12]} {' '.join(f'{k} {v}' for k, v in versions.items())}"


def recorded(log: Path, current: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of this version by pair."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        if entry["version"] == current and "outcome" in entry:
            rows[entry["source"], entry["target"]] = entry
    return rows


def write(log: Path, entry: dict[str, Any]) -> None:
    """Appends one line; short enough to be written in one piece."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def pairs_of(family: str) -> list[tuple[str, str]]:
    """Pairs of a family, in the order of its models."""
    from bench.pair_runs import candidates, parameters

    keys = FAMILIES[family]
    sizes = {key: parameters(key) for key in keys}
    series = [(a, b) for a, b in zip(keys, keys[1:], strict=False) if sizes[a] <= sizes[b]]
    found = dict.fromkeys([*series, *candidates(keys), *NAMED.get(family, [])])
    return sorted(found, key=lambda pair: keys.index(pair[0]) if pair[0] in keys else len(keys))


def work(family: str, only: str, measured: int, seconds: int, log: Path, note: Path) -> None:
    """Runs the pairs of one family that the log lacks; `note` tells the parent process which is under way."""
    import torch

    from bench.pair_runs import run_pair

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    current = version()

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    for source, target in pairs_of(family):
        done = recorded(log, current)
        if (source, target) in done or not matches(only, family, source, target):
            continue
        entry = {"version": current, "family": family, "source": source, "target": target}
        note.write_text(json.dumps(entry), encoding="utf-8")
        signal.alarm(seconds)
        try:
            row = run_pair(source, target, measured)
        except Exception as error:  # a fault of one pair leaves the others alone
            row = {"outcome": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        finally:
            signal.alarm(0)
        write(log, entry | row)


def matches(only: str, *names: str) -> bool:
    """True if the pattern fits a name (with or without its library) or a family."""
    return any(fnmatch.fnmatch(name, only) or fnmatch.fnmatch(name.partition(":")[2], only) for name in names)


def watch(family: str, options: argparse.Namespace) -> None:
    """One process per family, started again after the pair that broke it."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "under_way.json"
        command = [sys.executable, __file__, "--work", family, "--only", options.only, "--note", str(note)]
        command += ["--measure", str(options.measure)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        while True:
            note.unlink(missing_ok=True)
            process = subprocess.Popen(command, cwd=ROOT, env=environment)
            problem = _until_it_ends(process, note)
            if process.returncode == 0:
                return
            under_way = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
            if under_way is None or (under_way["source"], under_way["target"]) in recorded(LOG, under_way["version"]):
                print(f"{family}: the process ended with {process.returncode} outside of any pair", flush=True)
                return
            reason = problem or f"the process ended with {process.returncode}"
            write(LOG, under_way | {"outcome": "failed", "reason": reason})


def _until_it_ends(process: subprocess.Popen[bytes], note: Path) -> str:
    """Waits, and ends a process that goes beyond its limits; returns which."""
    while process.poll() is None:
        problem = ""
        if _resident(process.pid) > GIGABYTES * 1e9:
            problem = f"more than {GIGABYTES} GB of memory"
        elif note.is_file() and time.time() - note.stat().st_mtime > 2 * SECONDS:
            problem = f"more than {2 * SECONDS} s"
        if problem:
            process.kill()
            process.wait()
            return problem
        time.sleep(0.5)
    return ""


def _resident(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="sources, targets or families to run")
    parser.add_argument("--jobs", type=int, default=2, help="families at a time")
    parser.add_argument("--measure", type=int, default=MEASURED, metavar="N", help="run models up to N parameters")
    parser.add_argument("--list", action="store_true", help="print the pairs and stop")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--also", action="append", default=[], metavar="DIGEST", help="count rows of this code too")
    parser.add_argument("--work", metavar="FAMILY", help=argparse.SUPPRESS)
    parser.add_argument("--note", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.only, options.measure, SECONDS, LOG, options.note)
        return
    families = [
        family
        for family, keys in FAMILIES.items()
        if matches(options.only, family, *keys, *(key for pair in NAMED.get(family, []) for key in pair))
    ]
    if options.list:
        for family in families:
            for source, target in pairs_of(family):
                if matches(options.only, family, source, target):
                    print(f"{family}: {source} -> {target}")
        return
    if not options.table:
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for family, job in [(family, pool.submit(watch, family, options)) for family in families]:
                job.result()
                print(f"{family}: done after {time.monotonic() - start:.0f} s", flush=True)
    from bench.pair_table import page

    current = version()
    earlier = [f"{digest} {current.partition(' ')[2]}" for digest in options.also]
    found = {pair: row for known in (*earlier, current) for pair, row in recorded(LOG, known).items()}
    rows = [row for row in found.values() if row["family"] in FAMILIES]
    order = list(FAMILIES)
    rows.sort(key=lambda row: order.index(row["family"]))
    print(f"written to {write_json('pairs', rows)}")
    PAGE.write_text(page(rows), encoding="utf-8")
    print("written to docs/pairs.md")


if __name__ == "__main__":
    main()
