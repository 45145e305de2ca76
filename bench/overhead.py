"""What a step of the trainer costs over a step of a bare loop, for data in memory: about 10 ms and about 100 ms a step.

    python bench/overhead.py [--repeats 400] [--only small-tensors-0 ...]      about ten minutes on one core

After every step of `progc.Trainer` a bare loop does one step in the same process: a copy of the same module, torch's
DataLoader over the same samples, AdamW, clipping, `loss.item()`. The overhead is the median over these pairs of
(trainer - bare) / bare, in percent, with its 95 % confidence interval by the sign test, by the clock and in seconds of
the processor. A limit holds by the latter, since other work on the machine changes it less. Samples are a
`TensorDataset`, and a map-style class without and with a random transform of torch, each without and with workers;
`read` is the median time in microseconds in which either loader, alone, gives a batch. Writes
bench/results/overhead.json, unless only some rows are measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import progc
from bench.common import write_json
from bench.trainer import BareLoop, Clock, paired, scheduled
from progc.data.loading import steps as loaded
from progc.emit import emit

BATCH, COUNT, SIZE = 64, 2048, 32
SIZES = {
    "small": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "large": {"embed_dim": 192, "depth": 3, "num_heads": 3},
}
LIMITS = {"small": 5.0, "large": 1.0}
"""Highest overhead in percent: at about 10 ms and at about 100 ms a step."""
WARM = 20
"""Pairs that are not counted: what is loaded late, and the samples that a reader watches."""


class Stored:
    """Samples of a map-style class; with `flips`, one in two is mirrored."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, flips: bool) -> None:
        self.images, self.labels, self.flips = images, labels, flips

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        if self.flips and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image, self.labels[index]


def samples(kind: str) -> Any:
    """Samples in memory: `tensors`, `samples` or `transforms`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, 10, (COUNT,), generator=generator)
    return TensorDataset(images, labels) if kind == "tensors" else Stored(images, labels, kind == "transforms")


def model(size: str) -> nn.Module:
    """A vision transformer: 32 x 32 images, patches of 8."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=SIZE, patch_size=8, num_classes=10, **SIZES[size])


def bare_loader(data: Any, workers: int) -> Iterator[Any]:
    """Batches of torch's own loader, epoch after epoch."""
    loader: Any = DataLoader(
        data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def measured(size: str, kind: str, workers: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Pairs of a step of the trainer and a bare step."""
    example = (torch.zeros(BATCH, 3, SIZE, SIZE),)
    module = emit(progc.capture(model(size), example), "eager", modes=("train",)).train()
    batches = bare_loader(samples(kind), workers)
    bare = BareLoop(module, batches)
    clock = Clock(bare.step)
    program = progc.capture(model(size), example)
    settings = progc.Settings(batch=BATCH, clip=1.0, compile="eager", ahead=False, workers=workers)
    schedule = scheduled(program, [SIZES[size]["depth"]], repeats + WARM)
    progc.Trainer(
        schedule, program=program, task=progc.Task(samples(kind)), run=folder, settings=settings, progress=clock
    ).fit()
    batches.close()  # type: ignore[attr-defined]
    wall, processor = paired(clock.spans[WARM:], bare.spans[WARM:]), paired(clock.used[WARM:], bare.used[WARM:])
    return {
        "size": size,
        "samples": kind,
        "workers": workers,
        "pairs": len(bare.spans) - WARM,
        "milliseconds": {
            "trainer": round(1e3 * statistics.median(clock.spans[WARM:]), 3),
            "bare": round(1e3 * statistics.median(bare.spans[WARM:]), 3),
        },
        "overhead_percent": wall,
        "overhead_percent_processor": processor,
        "limit": LIMITS[size],
        "holds": processor["median"] <= LIMITS[size],
    }


def reading(kind: str, rounds: int) -> dict[str, Any]:
    """Microseconds per batch of 64 of either loader alone, in turns, without workers: medians."""
    data = samples(kind)
    task, count = progc.Task(data), COUNT // BATCH

    def seconds(batches: Iterable[Any]) -> float:
        start = time.process_time()
        for _ in batches:
            pass
        return (time.process_time() - start) / count

    found: dict[str, list[float]] = {"progc": [], "torch": []}
    for number in range(rounds):
        found["progc"].append(seconds(loaded(task, batch=BATCH, seed=0, epoch=number)))
        found["torch"].append(seconds(DataLoader(data, BATCH, shuffle=True, drop_last=True)))
    return {"samples": kind, **{name: round(1e6 * statistics.median(times), 1) for name, times in found.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="pairs of steps of the small network; a quarter of it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="rows to measure, such as small-tensors-0; writes no file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    kinds = ("tensors", "samples", "transforms")
    read = [] if options.only else [reading(kind, 20) for kind in kinds]
    for row in read:
        print(row, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for kind in kinds:
                for workers in (0, 2):
                    name = f"{size}-{kind}-{workers}"
                    if options.only and name not in options.only:
                        continue
                    repeats = options.repeats if size == "small" else options.repeats // 4
                    rows.append(measured(size, kind, workers, repeats, Path(folder) / name))
                    print(rows[-1], flush=True)
    if not options.only:
        write_json(
            "overhead", {"limits": LIMITS, "load_before": round(load, 2), "read_microseconds": read, "rows": rows}
        )
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
