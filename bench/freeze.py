"""What freezing saves: time of a training step, saved activations, operations of the backward, optimizer state.

    python bench/freeze.py [--rounds 25] [--width 128] [--threads 2]        some minutes on two cores

A vision transformer of 12 blocks (64 x 64 images, patches of 8, batch 8) trains with everything trainable and with
parts of it frozen: forwards, backwards, AdamW on what trains, eager mode, in turns and in one process. Every step of a
variant is paired with an unfrozen step; a figure is the median of the ratios of these pairs, with quartiles.
Activations are the storages that autograd saves in a real step, without parameters. Writes bench/results/freeze.json.
"""

from __future__ import annotations

import argparse
import os
import random
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
from torch import Tensor, nn

import progc
from bench.common import write_json
from progc.analysis.costs.counting import count
from progc.ir.program import Program

VARIANTS = {
    "all trainable": "freeze",
    "prefix 9 of 12 with stem": "freeze{prefix=9 stem=true}",
    "prefix 9 of 12, stem trains": "freeze{prefix=9}",
    "interleaved, 3 of 4 frozen": "freeze{level=1}",
    "interleaved, 2 of 4 frozen": "freeze{level=2}",
    "interleaved, 1 of 4 frozen": "freeze{level=3}",
    "suffix 9 of 12": "freeze{suffix=9}",
    "attention only": "freeze{only=attention}",
    "norms only": "freeze{only=norms}",
    "head only": "freeze{only=head}",
}
LIMITS = {
    "prefix 9 of 12 with stem": {"step": 0.55, "activations": 0.30},
    "interleaved, 3 of 4 frozen": {"step": 0.85, "activations": 0.75},
}
BATCH = 8


class Variant:
    """One trainable set, with an optimizer of what trains."""

    def __init__(self, program: Program, pipeline: str) -> None:
        self.program = progc.apply(program, pipeline.replace("}", " measure=false}") if "{" in pipeline else pipeline)
        self.module = self.program.module().train()
        training = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(training, lr=1e-4)

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """One training step; wall and CPU seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        F.cross_entropy(self.module(images), labels).backward()
        self.optimizer.step()
        return time.perf_counter() - wall, time.process_time() - cpu

    def saved(self, images: Tensor, labels: Tensor) -> int:
        """Bytes of the distinct storages that autograd saves in a real step; parameters are not counted."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.module.parameters()}
        found: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            F.cross_entropy(self.module(images), labels)
            return sum(storage.nbytes() for storage in found.values())


def network(width: int) -> nn.Module:
    """12 blocks, no dropout."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=64, patch_size=8, embed_dim=width, depth=12, num_heads=width // 32, num_classes=100
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 64, 64), torch.randint(100, (BATCH,))
    program = progc.capture(network(options.width), (images,))
    variants = {name: Variant(program, pipeline) for name, pipeline in VARIANTS.items()}
    base, order = variants["all trainable"], list(variants)
    for variant in variants.values():
        variant.step(images, labels)  # warm up
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    seconds: list[tuple[float, float]] = []
    for number in range(options.rounds):
        random.Random(number).shuffle(order)
        for name in order:
            first = base.step(images, labels)
            second = variants[name].step(images, labels)
            pairs[name].append((second[0] / first[0], second[1] / first[1]))
            seconds.append(first)
    ratios = {}
    saved = {name: variant.saved(images, labels) for name, variant in variants.items()}
    costs = {name: count(variant.program) for name, variant in variants.items()}
    full = costs["all trainable"]
    for name in variants:
        ratios[name] = {
            "step": _spread([wall for wall, _ in pairs[name]]),
            "step, CPU time": _spread([cpu for _, cpu in pairs[name]]),
            "activations": [round(saved[name] / saved["all trainable"], 4)],
            "backward FLOPs": [round(costs[name].backward_flops / full.backward_flops, 4)],
            "Adam's moments": [round(costs[name].optimizer_bytes / full.optimizer_bytes, 4)],
        }
    columns = list(ratios["all trainable"])
    print(f"{'':30}" + "".join(f"{column:>18}" for column in columns))
    for name, row in ratios.items():
        print(f"{name:30}" + "".join(f"{row[column][0]:18.3f}" for column in columns))
    limits = []
    for name, wanted in LIMITS.items():
        for column, limit in wanted.items():
            measured = ratios[name][column][0]
            limits.append({"variant": name, "column": column, "limit": limit, "holds": measured <= limit})
            print(f"{name}, {column}: {measured:.3f}, limit {limit:.2f}: {'holds' if measured <= limit else 'FAILS'}")
    path = write_json(
        "freeze",
        {
            "network": {"blocks": 12, "width": options.width, "image": 64, "patch": 8, "batch": BATCH},
            "rounds": options.rounds,
            "threads": options.threads,
            "unfrozen": {
                "step_seconds": round(statistics.median(wall for wall, _ in seconds), 5),
                "step_cpu_seconds": round(statistics.median(cpu for _, cpu in seconds), 5),
                "activation_bytes": saved["all trainable"],
                "counted_activation_bytes": full.activation_bytes,
                "backward_flops": full.backward_flops,
                "adam_bytes": full.optimizer_bytes,
            },
            "ratios": ratios,
            "limits": limits,
        },
    )
    print(f"written: {path}")


def _spread(values: list[float]) -> list[float]:
    """Median and quartiles: single steps on a busy machine are late by any factor."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(value, 4) for value in (middle, low, high)]


if __name__ == "__main__":
    main()
