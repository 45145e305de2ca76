"""What the trainer costs: per step over a bare loop, at a boundary over a cold compile, and from SIGTERM to the exit.

    python bench/trainer.py [--steps 120] [--stops 5] [--only overhead]      about ten minutes on two cores

Overhead: after every step of `progc.Trainer` a bare loop does one step (a copy of the same module, a DataLoader over
the same samples, AdamW, clipping, `loss.item()`), in the same process, eager and with compiled regions. The overhead is
the median over such pairs of (trainer - bare) / bare, in percent, with its 95 % confidence interval by the sign test:
in seconds by the clock, and in seconds of the processor, which other work on the machine changes less. Boundary: a
vision transformer grows from 3 to 6 blocks while the next stage is compiled ahead. Lost is the time from the last step
of one stage to the first step of the next, less an ordinary step; for comparison, the same for the first step of a run
that begins with 6 blocks and an empty cache. Each runs in a separate process. SIGTERM: `progc train` is sent the signal
in the middle of training; the figure is the seconds until it has saved and exited. Writes bench/results/trainer.json,
unless only one part is measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait take no CPU time, here or from others
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="progc-bench-")

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import progc
from bench.common import child, write_json
from progc.emit import emit
from progc.schedule import ModelRef, Point, Schedule, Space, Stage
from progc.train.progress import Progress

LIMITS = {"overhead in percent": 1.0, "boundary over cold compile": 0.05}
PARTS = ("overhead", "boundary", "sigterm")
BATCH = 16


def model(depth: int) -> nn.Module:
    """A vision transformer: embedding dim 192, 64 x 64 images, patches of 8."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=64, patch_size=8, embed_dim=192, depth=depth, num_heads=3, num_classes=10)


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(512, 3, 64, 64, generator=generator)
    return TensorDataset(images, torch.randint(0, 10, (512,), generator=generator))


class Clock(Progress):
    """Shows nothing; records when each step was done, and calls a function after it.

    Attributes:
        spans: seconds of each step by the clock; `used`: those of the processor.
    """

    def __init__(self, after: Any = None) -> None:
        super().__init__(shows=False)
        self.after, self.left = after, now()
        self.spans: list[float] = []
        self.used: list[float] = []

    def step(self, step: int, loss: float | None) -> None:
        """Since the last one was left."""
        wall, used = now()
        self.spans.append(wall - self.left[0])
        self.used.append(used - self.left[1])
        if self.after is not None:
            self.after()
        self.left = now()


class BareLoop:
    """A training loop without progc: AdamW, clipping, `loss.item()`.

    Attributes:
        spans: seconds of each step by the clock; `used`: those of the processor.
    """

    def __init__(self, module: nn.Module, batches: Iterator[Any]) -> None:
        self.module, self.batches = module, batches
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        self.spans: list[float] = []
        self.used: list[float] = []

    def step(self) -> None:
        """Takes one step, the loading of its batch included."""
        start = now()
        images, labels = next(self.batches)
        loss = F.cross_entropy(self.module(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        end = now()
        self.spans.append(end[0] - start[0])
        self.used.append(end[1] - start[1])


def now() -> tuple[float, float]:
    """Seconds by the clock, and of the processor in this process."""
    return time.perf_counter(), time.process_time()


def paired(trainer: list[float], bare: list[float]) -> dict[str, float]:
    """Median of (trainer - bare) / bare in percent, and the bounds of its 95 % confidence interval.

    The interval is that of the sign test: order statistics of the pairs, without an assumption about their spread.
    """
    found = sorted(100 * (a - b) / b for a, b in zip(trainer, bare, strict=True))
    count, place = len(found), 0

    def at_most(below: int) -> float:
        """Probability that at most so many pairs lie below the median."""
        return sum(math.comb(count, number) for number in range(below + 1)) * 0.5**count

    while 2 * (place + 1) < count and at_most(place + 1) <= 0.025:
        place += 1
    return {
        "median": round(statistics.median(found), 3), "low": round(found[place], 3), "high": round(found[-1 - place], 3)
    }  # fmt: skip


def scheduled(program: Any, depths: list[int], steps: int) -> Schedule:
    share = 1 / len(depths)
    stages = tuple(Stage(k, Point({"blocks": depth}, {}), share) for k, depth in enumerate(depths))
    return Schedule(ModelRef.of(program), "linear", stages, Space(), total=steps * len(depths), unit="steps")


def trained(folder: Path, depths: list[int], steps: int, clock: Clock, **more: Any) -> Path:
    """A run; its folder."""
    program = progc.capture(model(depths[-1]), (torch.zeros(BATCH, 3, 64, 64),))
    task = progc.Task(samples())
    settings = progc.Settings(batch=BATCH, clip=1.0, **more)
    schedule = scheduled(program, depths, steps)
    progc.Trainer(schedule, program=program, task=task, run=folder, settings=settings, progress=clock).fit()
    return folder


def overhead(compile_as: str, steps: int, folder: Path) -> dict[str, Any]:
    """A step of the trainer beside the bare step measured with it."""
    program = progc.capture(copy.deepcopy(model(6)), (torch.zeros(BATCH, 3, 64, 64),))
    module = emit(program, "eager" if compile_as == "eager" else "regions", modes=("train",)).train()

    def endless() -> Iterator[Any]:
        while True:
            yield from DataLoader(samples(), BATCH, shuffle=True, drop_last=True)

    batches = endless()
    bare = BareLoop(module, batches)
    clock = Clock(bare.step)
    trained(folder, [6], steps, clock, compile=compile_as, ahead=False)
    first = min(8, steps // 2)  # compiling, and what is loaded late
    wall, processor = paired(clock.spans[first:], bare.spans[first:]), paired(clock.used[first:], bare.used[first:])
    return {
        "compile": compile_as,
        "pairs": len(bare.spans) - first,
        "milliseconds": {
            "trainer": round(1e3 * statistics.median(clock.spans[first:]), 3),
            "bare": round(1e3 * statistics.median(bare.spans[first:]), 3),
        },
        "overhead_percent": wall,
        "overhead_percent_processor": processor,
        "holds": processor["median"] <= LIMITS["overhead in percent"],
    }


def lost(depths: list[int], steps: int, folder: Path) -> dict[str, Any]:
    """Seconds by which the first step of the last stage, with the boundary before it, is longer than others."""
    clock = Clock()
    run = trained(folder, depths, steps, clock, compile="regions")
    before = steps * (len(depths) - 1)
    ordinary = statistics.median(clock.spans[before + 2 :])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = next((line["measured"] for line in lines if line["kind"] == "boundary"), {})
    return {"seconds": round(clock.spans[before] - ordinary, 3), "step": round(ordinary, 4), "boundary": record}


def boundary(steps: int) -> dict[str, Any]:
    """The warm boundary and the cold compile."""
    found = {}
    for name, depths in (("warm boundary", "3,6"), ("cold compile", "6")):
        row, failed = child(__file__, ["--lost", depths, str(steps)], 900)
        if row is None:
            raise SystemExit(f"{name}: {failed}")
        found[name] = row
    ratio = found["warm boundary"]["seconds"] / found["cold compile"]["seconds"]
    return {**found, "ratio": round(ratio, 4), "holds": ratio <= LIMITS["boundary over cold compile"]}


def stopped(stops: int, folder: Path) -> dict[str, Any]:
    """Seconds from SIGTERM to the exit of `progc train`, and the size of the checkpoint."""
    seconds = []
    size = 0
    command = [
        sys.executable, "-m", "progc", "train", "timm:vit_tiny_patch16_224", "--data", "digits", "--stages", "1",
        "--steps", "100000", "--batch", "8", "--set", "train.compile=eager", "--set", "train.ema=[0.999]",
        "--set", "plan.resolutions=none", "--set", "train.log_every=1",
    ]  # fmt: skip
    for number in range(stops):
        run = folder / str(number)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        log = (folder / f"{number}.log").open("w")
        process = subprocess.Popen([*command, "--out", str(run)], stdout=log, stderr=log, env=environment)
        lines = run / "metrics.jsonl"
        while not (lines.is_file() and lines.read_text().count("\n") >= 3):
            if process.poll() is not None:
                raise SystemExit((folder / f"{number}.log").read_text()[-500:])
            time.sleep(0.05)
        time.sleep(random.Random(number).random())
        start = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
        seconds.append(time.perf_counter() - start)
        assert code == 143, code
        size = sum(path.stat().st_size for path in run.glob("step-*/*"))
    return {
        "model": "vit_tiny_patch16_224, AdamW, one average",
        "checkpoint_megabytes": round(size / 1e6, 1),
        "seconds": [round(value, 2) for value in sorted(seconds)],
        "median": round(statistics.median(seconds), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, help="measure one part and write no file")
    parser.add_argument("--compile", nargs="+", choices=("eager", "regions"), default=["eager", "regions"])
    parser.add_argument("--lost", nargs=2, metavar=("DEPTHS", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.lost:
            depths = [int(part) for part in options.lost[0].split(",")]
            print(json.dumps(lost(depths, int(options.lost[1]), Path(folder) / "run")))
            return 0
        parts = (options.only,) if options.only else PARTS
        rows: list[dict[str, Any]] = []
        found: dict[str, Any] = {"limits": LIMITS}
        if "overhead" in parts:
            for way in options.compile:
                rows.append(overhead(way, options.steps, Path(folder) / way))
                print(json.dumps(rows[-1]), flush=True)
            found["overhead"] = list(rows)
        if "boundary" in parts:
            found["boundary"] = boundary(options.steps * 2)
            print(json.dumps(found["boundary"]), flush=True)
            rows.append(found["boundary"])
        if "sigterm" in parts:
            found["sigterm"] = stopped(options.stops, Path(folder))
            print(json.dumps(found["sigterm"]), flush=True)
    if not options.only:
        write_json("trainer", found)
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
