"""progc beside the published code of AutoProg and AutoProg-Zero: the same inputs to both, mechanism by mechanism.

    python bench/published.py --autoprog DIR --autoprog-zero DIR       about 8 minutes on one core
    python bench/published.py                                          formulas stand for the published code
    python bench/published.py --only vote grids                        some comparisons; others are kept from the file
    python bench/published.py --list

DIR are checkouts of github.com/changlin31/AutoProg at e7ecc98 and github.com/changlin31/AutoProg-Zero at 1519475.
Functions of them are imported or compiled from there; nothing of them is part of this project. Where there is no
checkout, or no function that can be run, the equations of the papers take its place (bench/published_formulas.py), and
the row says so. A row is equal, differs by design (a record in docs/adr/ has the reason), or is absent from progc
(an issue asks for it). Anything else is a failure, with exit code 1. Writes bench/results/published.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench import published_growth, published_samples, published_schedules, published_searches
from bench.common import RESULTS, write_json
from bench.published_code import COMMITS, Code, commit
from bench.published_row import CODE, Compare, Row

COMPARISONS: dict[str, Compare] = {
    compare.__name__: compare  # type: ignore[attr-defined]
    for module in (published_schedules, published_growth, published_searches, published_samples)
    for compare in module.ROWS
}


def compared(names: list[str], code: Code) -> list[dict[str, Any]]:
    """Runs comparisons, prints their rows, and returns them with the name of the comparison."""
    found = []
    for name in names:
        start = time.perf_counter()
        rows = list(COMPARISONS[name](code))
        seconds = round(time.perf_counter() - start, 1)
        for row in rows:
            print(_line(row), flush=True)
            found.append({**row.to_json(), "settled": row.settled, "comparison": name, "seconds": seconds})
    return found


def _line(row: Row) -> str:
    largest = "" if row.largest is None else f", largest difference {row.largest:.2g}"
    cases = f"{row.differ} of {row.cases} differ{largest}" if row.cases else row.progc
    return f"{row.name}: {row.verdict}; {cases} [{row.side}]{f'; {row.note}' if row.note else ''}"


def main() -> None:
    """Compares, prints a line for each row, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoprog", type=Path, help=f"a checkout of AutoProg at {COMMITS['AutoProg']}")
    parser.add_argument("--autoprog-zero", type=Path, help=f"a checkout of AutoProg-Zero at {COMMITS['AutoProg-Zero']}")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, metavar="NAME", help="comparisons; see --list")
    parser.add_argument("--list", action="store_true", help="names of the comparisons")
    parser.add_argument("--dry-run", action="store_true", help="compare and print, write no file")
    options = parser.parse_args()
    if options.list:
        print("\n".join(COMPARISONS))
        return
    commits = {}
    for name, folder in zip(COMMITS, (options.autoprog, options.autoprog_zero), strict=True):
        if folder is not None and not (folder / "prog" / "progressive.py").is_file():
            parser.error(f"{folder} is not a checkout of {name}: it has no prog/progressive.py")
        commits[name] = None if folder is None else commit(folder)
        if folder is not None and not str(commits[name]).startswith(COMMITS[name]):
            print(f"{folder} is at {commits[name]}; the results are for {COMMITS[name]}", file=sys.stderr)
    torch.set_num_threads(1)
    code = Code(*(folder and folder.resolve() for folder in (options.autoprog, options.autoprog_zero)))
    names = [name for name in COMPARISONS if options.only is None or name in options.only]
    rows = compared(names, code)
    open_rows = [row["row"] for row in rows if not row["settled"]]
    from_code = sum(row["published side"] == CODE for row in rows)
    print(f"{len(rows)} rows, {from_code} beside published code, {len(open_rows)} without a recorded reason")
    if not options.dry_run:
        path = RESULTS / "published.json"
        kept: list[Any] = json.loads(path.read_text(encoding="utf-8"))["results"]["rows"] if path.is_file() else []
        rows += [row for row in kept if row["comparison"] in COMPARISONS and row["comparison"] not in names]
        rows.sort(key=lambda row: list(COMPARISONS).index(row["comparison"]))
        print(f"wrote {write_json('published', {'commits': commits, 'rows': rows})}")
    if open_rows:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
