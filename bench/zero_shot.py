"""Fine-tuning schedules found by the published vote and by ours, on scikit-learn's digits.

    python bench/zero_shot.py [--seeds 3] [--steps 120] [--threads 1]        some minutes

A transformer of 8 blocks learns upright digits, then is fine-tuned on digits that lie on their side, inverted, in four
equal stages. At the start of each stage the search decides which blocks train, with the weights of that moment. Fixed
schedules are compared with it. A figure is the mean over seeds: accuracy on held-out digits, and the predicted time of
all steps as a share of that of training everything throughout. Writes bench/results/zero_shot.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch import Tensor

import progc
from bench.common import write_json
from examples.digits_vit import DigitsViT, load_digits
from progc.data.task import Task
from progc.ir.program import Program
from progc.schedule import Index, Space, Unfreeze
from progc.schedule.building import stage_program
from progc.schedule.costing import predicted_seconds
from progc.search.zero_shot import decide

STAGES, BATCH = 4, 32


def levels(*shapes: str) -> Space:
    """Four levels of each shape."""
    return Space(unfreeze=tuple(Unfreeze(shape, level, 4) for shape in shapes for level in (1, 2, 3, 4)))


ONE, ALL = levels("interleave"), levels("interleave", "prefix", "suffix")
FIXED = {"everything": (3, 3, 3, 3), "linear 1, 2, 3, 4": (0, 1, 2, 3)}
SEARCHED: dict[str, tuple[Space, dict[str, Any]]] = {
    "reference": (ONE, {"mode": "reference", "settings": {"time": "predicted"}}),
    "default, interleaved": (ONE, {}),
    "default, all shapes": (ALL, {}),
}


def turned(images: Tensor) -> Tensor:
    """The other domain: on their side, dark on light."""
    return 1 - images.rot90(1, (2, 3))


def pretrained(seed: int, steps: int, data: tuple[Tensor, Tensor]) -> Program:
    """A network that knows upright digits."""
    torch.manual_seed(seed)
    model = DigitsViT(depth=8, width=48, heads=3)
    train(model, data, steps, seed, 1e-3)
    return progc.capture(model.train(), (torch.rand(4, 1, 8, 8),))


def train(module: torch.nn.Module, data: tuple[Tensor, Tensor], steps: int, seed: int, lr: float) -> None:
    """AdamW on shuffled batches of what trains."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (BATCH,), generator=generator)
        loss = F.cross_entropy(module(data[0][chosen]), data[1][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(program: Program, data: tuple[Tensor, Tensor]) -> float:
    """Share of held-out digits that are right."""
    module = program.module().eval()
    with torch.no_grad():
        return float((module(data[0]).argmax(1) == data[1]).float().mean())


def tuned(name: str, seed: int, steps: int, start: Program, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Fine-tunes in stages; the levels, the time and the search's seconds."""
    full = own(start)
    whole = predicted_seconds(full, batch=BATCH)
    space, options = SEARCHED.get(name, (ONE, {}))
    task = Task(list(zip(*data, strict=True)))
    place: Index | None = None
    chosen, spent, searching = [], 0.0, 0.0
    for stage in range(STAGES):
        if name in FIXED:
            place = Index(unfreeze=FIXED[name][stage])
        else:
            begin = time.perf_counter()
            place, _ = decide(full, space, place, task, stage=stage, stages=STAGES, batch=BATCH, seed=seed, **options)
            searching += time.perf_counter() - begin
        program = stage_program(full, space.point(place))
        train(program.module(), data, steps // STAGES, seed * STAGES + stage, 3e-4)  # the memory is the full network's
        spent += predicted_seconds(program, batch=BATCH) / whole / STAGES
        chosen.append(str(space.point(place)))
    return {"levels": chosen, "time": spent, "search_seconds": searching, "program": full}


def own(program: Program) -> Program:
    """The program over its own copy of the tensors."""
    return program.replace(
        tensors={
            name: torch.nn.Parameter(tensor.detach().clone())
            if isinstance(tensor, torch.nn.Parameter)
            else tensor.clone()
            for name, tensor in program.tensors.items()
        }
    )


def main() -> None:
    """Runs all schedules from all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, labels, held, answers = load_digits()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (*FIXED, *SEARCHED)}
    for seed in range(options.seeds):
        start = pretrained(seed, 300, (images, labels))
        for name, found in results.items():
            result = tuned(name, seed, options.steps, start, (turned(images), labels))
            result["accuracy"] = accuracy(result.pop("program"), (turned(held), answers))
            found.append(result)
            print(
                f"seed {seed}  {name:22}  {result['accuracy']:.3f}  {result['time']:.3f}  {result['levels']}",
                flush=True,
            )
    rows = [
        {
            "schedule": name,
            "accuracy": statistics.fmean(result["accuracy"] for result in found),
            "time": statistics.fmean(result["time"] for result in found),
            "search_seconds": statistics.fmean(result["search_seconds"] for result in found),
            "levels": [result["levels"] for result in found],
            "accuracies": [result["accuracy"] for result in found],
        }
        for name, found in results.items()
    ]
    write_json("zero_shot", {"steps": options.steps, "seeds": options.seeds, "rows": rows})


if __name__ == "__main__":
    main()
