"""One-shot search on scikit-learn's digits: what it chooses, what it costs, and where training ends.

    python bench/one_shot.py [--epochs 80] [--seeds 2] [--reference]       about 6 minutes on one core

A transformer of 12 blocks (examples/digits_vit.py, width 64) trains for a number of epochs at full size, and by a
schedule of 4 stages whose first three are searched while it trains: the search is inside the same budget. Depths are 6,
8, 10 and 12; images of 8 x 8 pixels in patches of 4 leave no second resolution. Both runs have the same number of
steps, the same data, AdamW and cosine; runs of both kinds take turns. The share of the search is what is neither a
training step nor data loading for one: growing, building candidates, evaluating, timing, reading out. Writes
bench/results/one_shot.json.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait take no CPU time, here or from others

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

import progc
from bench.common import write_json
from examples.digits_vit import DigitsViT, load_digits, predict, shifted
from progc.data.task import Task
from progc.ir.program import Program
from progc.ir.random_state import seeded
from progc.schedule import Space
from progc.search.one_shot import copied, search_stage, train_on

BATCH, STAGES, PEAK, WARM = 64, 4, 1e-3, 50
SPACE = Space(depths=tuple({"blocks": depth} for depth in (6, 8, 10, 12)))


def task() -> Task:
    """The training digits, each moved by up to one pixel."""
    images, labels, _, _ = load_digits()

    def collate(samples: list[Any]) -> Any:
        batch = default_collate(samples)
        return shifted(batch[0]), batch[1]

    def loss(logits: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(logits, batch[1], label_smoothing=0.1)

    return Task(TensorDataset(images, labels), loss, collate=collate)


class Run:
    """A network in training: its optimizer, how far it is, and the learning rate's course."""

    def __init__(self, full: Program, data: Task, epochs: int, seed: int) -> None:
        self.program, self.data, self.epochs, self.seed = copied(full), data, epochs, seed
        tensors = [tensor for _, tensor in self.program.parameters()]
        self.optimizer = torch.optim.AdamW(tensors, lr=PEAK, weight_decay=0.05)
        self.per_epoch = len(data.samples) // BATCH
        self.total, self.done = epochs * self.per_epoch, 0
        self.wall, self.cpu = 0.0, 0.0

    def rate(self, step: int) -> None:
        """Sets the learning rate of a step."""
        now = PEAK * min(1, (step + 1) / WARM) * (1 + math.cos(math.pi * step / self.total)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = now

    def train(self, until: int, stage: int) -> None:
        """Trains up to a step."""
        start = time.perf_counter(), time.process_time()
        steps = until - self.done
        self.done += train_on(
            self.program, self.optimizer, self.data, epochs=steps / self.per_epoch, batch=BATCH, stage=stage,
            seed=self.seed, done=self.done, before_step=self.rate,
        )  # fmt: skip
        self.wall += time.perf_counter() - start[0]
        self.cpu += time.process_time() - start[1]

    def accuracy(self) -> float:
        """Share of the held-out digits that are told right, in percent."""
        _, _, images, labels = load_digits()
        found = predict(self.program.module(), images).argmax(1)
        return 100 * float((found == labels).float().mean())


def full_size(full: Program, data: Task, epochs: int, seed: int) -> dict[str, Any]:
    """Trains the full network throughout."""
    run = Run(full, data, epochs, seed)
    run.train(run.total, 0)
    return {"kind": "full size", "seed": seed, "steps": run.done, "accuracy": round(run.accuracy(), 2),
            "wall": round(run.wall, 2), "cpu": round(run.cpu, 2)}  # fmt: skip


def by_schedule(full: Program, data: Task, epochs: int, seed: int, mode: str) -> dict[str, Any]:
    """Searches and trains stage after stage."""
    run, current, rows = Run(full, data, epochs, seed), None, []
    settings = {"batches": 20} if mode == "reference" else {}  # 50 are more than there are
    overhead, overhead_cpu, steps, ema = 0.0, 0.0, 0, None
    for stage in range(STAGES):
        start = time.perf_counter(), time.process_time()
        found = search_stage(
            run.program, SPACE, current, data, stage=stage, stages=STAGES, batch=BATCH, seed=seed, mode=mode,
            settings=settings, optimizer=run.optimizer, ema=ema, done=run.done, before_step=run.rate,
        )  # fmt: skip
        run.wall += time.perf_counter() - start[0]
        run.cpu += time.process_time() - start[1]
        run.program, current, ema = found.program, found.index, found.ema
        run.done += found.steps
        overhead, overhead_cpu = overhead + found.overhead, overhead_cpu + found.overhead_cpu
        steps += found.steps
        rows.append(_row(found.decision, found.overhead))
        run.train(run.total * (stage + 1) // STAGES, stage)
    return {
        "kind": f"one-shot, {mode}", "seed": seed, "steps": run.done, "search steps": steps,
        "schedule": [row["depth"] for row in rows], "accuracy": round(run.accuracy(), 2),
        "wall": round(run.wall, 2), "cpu": round(run.cpu, 2), "search wall": round(overhead, 2),
        "search share of training": round(overhead / (run.wall - overhead), 4), "search cpu": round(overhead_cpu, 2),
        "search cpu share of training": round(overhead_cpu / (run.cpu - overhead_cpu), 4), "stages": rows,
    }  # fmt: skip


def _row(decision: Any, overhead: float) -> dict[str, Any]:
    candidates = [
        {
            "depth": candidate.point.depths["blocks"],
            **{name: round(value, 6) for name, value in candidate.scores.items()},
            "loss x time^alpha": round(candidate.total, 6),
        }
        for candidate in decision.candidates
    ]
    return {
        "stage": decision.stage,
        "depth": decision.candidates[decision.winner].point.depths["blocks"],
        "reason": decision.reason,
        "alpha": round(decision.settings["alpha"], 4),
        "seconds without training": round(overhead, 3),
        "candidates": candidates,
    }


def main() -> None:
    """Runs, prints a table, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--reference", action="store_true", help="the published procedure as well, with one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, results = task(), []
    for seed in range(options.seeds):
        with seeded(seed):
            full = progc.capture(DigitsViT(depth=12, width=64, heads=4), (torch.rand(4, 1, 8, 8),))
        results.append(full_size(full, data, options.epochs, seed))
        print(_line(results[-1]), flush=True)
        for mode in ("default", "reference") if options.reference and seed == 0 else ("default",):
            results.append(by_schedule(full, data, options.epochs, seed, mode))
            print(_line(results[-1]), flush=True)
            for row in results[-1]["stages"]:
                print(f"    stage {row['stage']}: {row['reason']}")
    summary = {}
    for kind in dict.fromkeys(result["kind"] for result in results):
        own = [result for result in results if result["kind"] == kind]
        keys = ["accuracy", "wall", "cpu", *(key for key in own[0] if key.startswith("search "))]
        summary[kind] = {key: round(statistics.fmean(run[key] for run in own), 4) for key in keys} | {"runs": len(own)}
    path = write_json("one_shot", {"epochs": options.epochs, "batch": BATCH, "mean": summary, "runs": results})
    print(f"wrote {path}")


def _line(result: dict[str, Any]) -> str:
    text = f"{result['kind']}, seed {result['seed']}: {result['accuracy']:.1f} % of the held-out digits, "
    text += f"{result['wall']:.1f} s ({result['cpu']:.1f} s of CPU), {result['steps']} steps"
    if "schedule" in result:
        text += f"; depths {result['schedule']}; search {result['search wall']:.1f} s"
        text += f" = {result['search share of training']:.1%} of training ({result['search cpu']:.1f} s of CPU = "
        text += f"{result['search cpu share of training']:.1%})"
    return text


if __name__ == "__main__":
    main()
