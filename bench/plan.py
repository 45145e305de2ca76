"""Costs of schedules: predicted speed-ups of large models without their weights, and predictions against real steps.

    python bench/plan.py [bounds|times|all] [--rounds 7] [--limit 1200]        some minutes on one core

`bounds`: for published models the speed-up of manual schedules of four equal stages over training the full network
throughout: by FLOPs that are counted on the graph, by the roofline, and by a cost that is linear in tokens and blocks,
which is how the bounds of the published schedules are computed. Each model is captured in a separate process, without
memory for its weights. The memory of its planning, above that of the same work on a tiny network, is reported with the
bytes of its weights.

`times`: 20 stage candidates each of a vision transformer and of a diffusion transformer, of different depth, resolution
and trainable set. Steps (forward, loss, backward, AdamW) are measured in turns, in CPU seconds on one thread, which
stay meaningful on a machine with other work; predictions come from the graphs and from rates of a few operations,
measured in about a second. Ranks are compared by Spearman's coefficient. Writes bench/results/plan.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait take no CPU time, here or from others

import torch

from bench.common import RESULTS, child, write_json
from bench.plan_models import SOURCES, candidates, classifier, denoiser, plans
from progc.analysis.costs.counting import count, step_of
from progc.analysis.costs.machine import default_machine
from progc.data.task import Task
from progc.ir.program import Program
from progc.models.opening import open_source
from progc.schedule import Point, Stage
from progc.schedule.building import stage_program
from progc.schedule.calibration import calibrate
from progc.schedule.costing import counted_stages, token_linear
from progc.schedule.stage import COUNTED, speedups
from progc.schedule.timing import step_times

BATCH = 8
_SEEN = candidates("blocks", (3, 6, 9, 12), (32, 48, 64), 20)
_DENOISED = candidates("transformer_blocks", (2, 4, 6, 8), (8, 12, 16), 20)
LIMIT = 0.95
"""The least rank correlation of predicted and measured times."""


def bounds(source: str) -> dict[str, Any]:
    """The row of one model, in a process that has planned nothing large before."""
    if source.startswith("timm:"):  # the libraries are not what is measured
        planned(classifier()[0], [[Point({"blocks": 6}, {}, (32, 32)), Point({}, {}, (64, 64))]])
    else:
        planned(denoiser()[0], [[Point({"transformer_blocks": 4}, {}, (8, 8)), Point({}, {}, (16, 16))]])
    before, start = _peak(), time.perf_counter()
    program = open_source(source).program(weights=False)
    rows = planned(program, [list(plan.points) for plan in plans(source)])
    held = count(program, batch=1)
    return {
        "model": source,
        "parameters": held.parameters,
        "forward_gflops": round(held.forward_flops / 1e9, 2),
        "weights_mib": round(held.parameter_bytes / 2**20, 1),
        "memory_mib": round((_peak() - before) / 2**20, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "plans": [
            {"plan": plan.label, "token_linear": round(token_linear(plan.linear), 3), **row}
            for plan, row in zip(plans(source), rows, strict=True)
        ],
    }


def planned(program: Program, schedules: list[list[Point]]) -> list[dict[str, Any]]:
    """Per schedule of equal stages its speed-ups, and what its stages cost against the last one."""
    points = [point for schedule in schedules for point in schedule]
    # Counted together: a network or a stage that several schedules share is counted once.
    counted = counted_stages(program, [Stage(0, point, 1.0) for point in points], batch=BATCH)
    rows, rest = [], iter(counted)
    for schedule in schedules:
        own = [dataclasses.replace(next(rest), share=1 / len(schedule)) for _ in schedule]
        known = [stage.cost for stage in own if stage.cost is not None]
        full = known[-1]
        seconds = [(cost.predicted_seconds or 0.0) / (full.predicted_seconds or 1.0) for cost in known]
        rows.append(
            {
                "flops": round(speedups(own).get(COUNTED, 0.0), 3),
                "roofline": round(len(seconds) / sum(seconds), 3),
                "stage_flops": [round(cost.flops / full.flops, 4) for cost in known],
                "stage_trainable": [round(cost.trainable / full.parameters, 4) for cost in known],
                "stage_memory_mib": [cost.memory >> 20 for cost in known],
            }
        )
    return rows


def times(name: str, program: Program, task: Task, points: list[Point], rounds: int) -> dict[str, Any]:
    """Measured and predicted steps of stage candidates."""
    programs = [stage_program(program, point) for point in points]
    start = time.process_time()
    machine = calibrate(clock=time.process_time)
    calibrated = time.process_time() - start
    steps = [step_of(candidate, BATCH) for candidate in programs]
    measured = step_times(programs, task, batch=BATCH, repeats=rounds, clock=time.process_time)
    guesses = {
        "roofline, calibrated": [machine.seconds(step) for step in steps],
        "roofline, usual constants": [default_machine().seconds(step) for step in steps],
        "FLOPs alone": [float(step.forward_flops + step.backward_flops) for step in steps],
    }
    print(f"\n{name}: {'measured ms':>38}{'calibrated ms':>16}{'GFLOPs':>10}")
    for place in sorted(range(len(points)), key=lambda place: measured[place]):
        own = guesses["roofline, calibrated"][place], guesses["FLOPs alone"][place]
        print(f"  {points[place]!s:40}{measured[place] * 1e3:10.2f}{own[0] * 1e3:16.2f}{own[1] / 1e9:10.3f}")
    found = {method: round(spearman(measured, guess), 4) for method, guess in guesses.items()}
    for method, value in found.items():
        print(f"  rank correlation, {method}: {value:.3f}")
    return {
        "network": name,
        "batch": BATCH,
        "rounds": rounds,
        "calibration_cpu_seconds": round(calibrated, 2),
        "rank_correlation": found,
        "limit": LIMIT,
        "holds": found["roofline, calibrated"] >= LIMIT,
        "candidates": [
            {
                "point": str(point),
                "measured_seconds": round(seconds, 6),
                "predicted_seconds": round(guesses["roofline, calibrated"][place], 6),
                "flops": int(guesses["FLOPs alone"][place]),
            }
            for place, (point, seconds) in enumerate(zip(points, measured, strict=True))
        ],
    }


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""

    def ranks(values: list[float]) -> torch.Tensor:
        ordered = torch.tensor(values, dtype=torch.float64)
        below = (ordered[None] < ordered[:, None]).sum(1)
        same = (ordered[None] == ordered[:, None]).sum(1)
        return below + (same + 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]).double())[0, 1])


def main() -> None:
    """Measures, prints, writes; a part that is not run keeps its earlier results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("bounds", "times", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each candidate")
    parser.add_argument("--limit", type=float, default=1200, help="seconds for each model of `bounds`")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="models of `bounds`")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model:
        print(json.dumps(bounds(options.model)))
        return
    path = RESULTS / "plan.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
    if options.part in ("bounds", "all"):
        rows = {row["model"]: row for row in results.get("bounds", [])}
        for source in options.sources:
            row, problem = child(__file__, ["--model", source], options.limit)
            rows[source] = row or {"model": source, "error": problem}
            _print_bounds(rows[source])
        results["bounds"] = [rows[source] for source in SOURCES if source in rows]
    if options.part in ("times", "all"):
        results["times"] = [
            times("vision transformer", *classifier(), _SEEN, options.rounds),
            times("diffusion transformer", *denoiser(), _DENOISED, options.rounds),
        ]
    print(f"written: {write_json('plan', results)}")


def _print_bounds(row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"{row['model']}: {row['error']}")
        return
    print(
        f"{row['model']}: {row['parameters'] / 1e6:.1f} M parameters, {row['forward_gflops']} GFLOPs forwards, "
        f"planned in {row['memory_mib']} MiB where the weights are {row['weights_mib']} MiB"
    )
    for plan in row["plans"]:
        print(f"  {plan['plan']:44} FLOPs {plan['flops']:.2f}x  roofline {plan['roofline']:.2f}x  "
              f"token-linear {plan['token_linear']:.2f}x  stages {plan['stage_flops']}")  # fmt: skip


def _peak() -> int:
    """Most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
