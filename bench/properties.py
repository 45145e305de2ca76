"""Does "lossless" hold? Random networks, random growth plans, and the float64 check of each.

    python bench/properties.py                # 1,000 cases: 250 networks with 4 plans each; about half an hour
    python bench/properties.py --cases 100    # fewer
    python bench/properties.py --only 17      # one network again, with all its faults

A case is a network (`tests/properties/networks.py`) and a plan (`tests/properties/plans.py`), both drawn from the
seed. It is either refused in one line, or exact: eval and train outputs, written buffers, gradients of the inputs,
ties, and the old weights given back by `progc.lift.revert`; or it was requested as lossy and runs. An
interrupted run resumes. Writes bench/results/properties.json.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.common import RESULTS, write_json
from progc.errors import CaptureError
from progc.ir.program import Program
from tests.properties.networks import captured, draw_recipe
from tests.properties.plans import draw_plan, judge, reverted

PLANS = 4
"""Plans for each captured network: capture takes longer than growth."""

KINDS = (
    ("takes statistics, no whole factor", r"is not an integer factor, and .* takes statistics"),
    ("activations multiplied and summed, no whole factor", r"is not an integer factor, and .* sums products"),
    ("parts of one dim grow by different factors", r"different factors"),
    ("groups across a seam", r"across a seam"),
    ("no parameter takes the factor", r"no parameter can take the factor"),
    ("copies of a repeated tensor", r"is repeated along it"),
    ("new units are not ignored", r"does not ignore new units"),
    ("a block cannot be the identity", r"cannot be the identity|normalised again"),
    ("no chain of blocks", r"no chain of blocks|no chains"),
    ("no head axis", r"no head axis"),
    ("the width is pinned", r"residual width .* cannot grow|no axis that can grow"),
    ("a size is no whole number", r"whole numbers"),
    ("does not run at these sizes", r"does not run at these sizes"),
    ("between periods of a chain", r"period"),
)


def cases(seed: int, networks: Iterator[int]) -> Iterator[list[dict[str, Any]]]:
    """The cases of one network after another, as plain data."""
    for number in networks:
        rng = random.Random(f"{seed} {number}")
        recipe = draw_recipe(rng)
        try:
            program = captured(recipe)
        except CaptureError as error:
            yield [{"network": number, "kind": "not captured", "text": f"{recipe}: {error}"}]
            continue
        yield [{"network": number, **case(program, rng, recipe)} for _ in range(PLANS)]


def case(program: Program, rng: random.Random, recipe: Any) -> dict[str, Any]:
    """One plan on one network."""
    plan = draw_plan(rng, program)
    verdict, grown, lifts = judge(program, plan)
    if verdict.kind == "exact" and grown is not None:
        verdict = reverted(program, grown, lifts) or verdict
    text = f"{recipe} {plan}: {verdict.text}" if verdict.kind == "disagreement" else verdict.text
    return {"kind": verdict.kind, "text": text, "plan": dataclasses.asdict(plan)}


def reason(text: str) -> str:
    """A refusal without the names in it."""
    return next((label for label, pattern in KINDS if re.search(pattern, text)), "other: " + text[:80])


def summary(done: list[dict[str, Any]], seed: int, seconds: float) -> dict[str, Any]:
    """Counts."""
    kinds = collections.Counter(entry["kind"] for entry in done)
    refused = collections.Counter(reason(entry["text"]) for entry in done if entry["kind"] == "refused")
    return {
        "seed": seed,
        "cases": sum(count for kind, count in kinds.items() if kind != "not captured"),
        "networks": len({entry["network"] for entry in done}),
        "seconds": round(seconds, 1),
        "verdicts": dict(kinds.most_common()),
        "refused": dict(refused.most_common()),
        "disagreements": [entry["text"] for entry in done if entry["kind"] == "disagreement"],
        "not captured": [entry["text"] for entry in done if entry["kind"] == "not captured"],
    }


def main() -> int:
    """Runs the cases that are missing, prints and writes the counts; 1 if there is a disagreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one network; nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.only is not None:
        found = next(cases(given.seed, iter([given.only])))
        print(draw_recipe(random.Random(f"{given.seed} {given.only}")))
        print("\n".join(f"{entry['kind']:12s}  {entry.get('plan')}  {entry['text']}" for entry in found))
        return int(any(entry["kind"] == "disagreement" for entry in found))
    path = RESULTS / f"properties.{given.seed}.partial.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    first = 1 + max((entry["network"] for entry in done), default=-1)
    start = time.perf_counter() - sum(entry.get("seconds", 0.0) for entry in done)
    for found in cases(given.seed, iter(range(first, given.cases // PLANS))):
        spent = time.perf_counter() - start - sum(entry.get("seconds", 0.0) for entry in done)
        found[0]["seconds"] = round(spent, 3)
        done += found
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in found)
        for entry in found:
            if entry["kind"] == "disagreement":
                print(f"network {entry['network']}: {entry['text']}", flush=True)
        if found[0]["network"] % 25 == 24:
            print(f"{len(done)} cases, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    results = summary(done, given.seed, time.perf_counter() - start)
    print(json.dumps(results, indent=2))
    if given.seed == 0 and given.cases >= 1000:
        print(write_json("properties", results))
    path.unlink(missing_ok=True)
    return int(bool(results["disagreements"]))


if __name__ == "__main__":
    sys.exit(main())
