"""Trains a small ViT on real digits, grows it to the size of a ViT-B, and compares every prediction.

The comparison does not rely on progc: it loads the written file into the plain class at the grown size with
`strict=True`, and compares the predictions of both networks on every held-out image. The exit code is 1 if one differs.
"""

from __future__ import annotations

import os

# Threads sleep while they wait: on a busy machine, spinning threads slow small layers down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from digits_vit import DigitsViT, build, load_digits, predict, train
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
GROWN_SIZE = {"depth": 12, "width": 768, "heads": 12}


def typed(path: Path) -> str:
    """Returns the path as a user would type it: relative if it lies below the current folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def grow(weights: Path, out: Path, console: Console) -> None:
    """Runs `progc grow` as a user would, with its progress on the terminal and its result on `console`."""
    options = ["grow", typed(HERE / "digits_vit.py"), "--to", "vit_b", "--weights", typed(weights)]
    options += ["--out", typed(out)]
    console.print(f"\n[bold]$ progc {' '.join(options)}[/bold]", highlight=False, soft_wrap=True)
    program = Path(sys.executable).with_name("progc")
    done = subprocess.run([str(program), *options], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    console.print(done.stdout, markup=False, highlight=False, soft_wrap=True, end="")
    if done.returncode:
        sys.exit(done.returncode)


def same_answers(before: Tensor, after: Tensor) -> int:
    """How many images get the same prediction from both logits [images, classes]."""
    return int((before.argmax(1) == after.argmax(1)).sum())


def summary(small: DigitsViT, grown: DigitsViT, logits: tuple[Tensor, Tensor], labels: Tensor) -> Table:
    """Before and after, side by side."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    sizes = [(len(m.blocks), m.norm.normalized_shape[0], m.blocks[0].attention.heads) for m in (small, grown)]
    for row, name in enumerate(("depth", "width", "heads")):
        table.add_row(name, *(str(size[row]) for size in sizes))
    table.add_row("parameters", *(f"{sum(p.numel() for p in m.parameters()):,}" for m in (small, grown)))
    right = [int((part.argmax(1) == labels).sum()) for part in logits]
    table.add_row("held-out digits right", *(f"{n} of {len(labels)}" for n in right))
    table.add_row("accuracy", *(f"{n / len(labels):.2%}" for n in right))
    return table


def timings(train_seconds: float, report: dict[str, Any], compare_seconds: float) -> Table:
    """Seconds by phase; those of `progc grow` come from its report."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_row("train the small model", f"{train_seconds:.1f}")
    for phase, seconds in report["seconds"].items():
        table.add_row(f"progc grow: {phase}", f"{seconds:.1f}")
    table.add_row("load and compare", f"{compare_seconds:.1f}")
    return table


def main() -> int:
    """Trains, grows, compares. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / ".demo", help="folder of the demo (default .demo)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to train (default 60)")
    parser.add_argument("--picture", type=Path, help="also write the output as an SVG")
    options = parser.parse_args()
    console = Console(record=options.picture is not None, width=112 if options.picture else None)

    console.print("[bold]1. Train a small ViT on scikit-learn's handwritten digits[/bold]")
    torch.manual_seed(0)
    train_images, train_labels, test_images, test_labels = load_digits()
    small = build()
    start = time.monotonic()
    train(small, train_images, train_labels, options.seconds)
    train_seconds = time.monotonic() - start
    options.out.mkdir(parents=True, exist_ok=True)
    weights, folder = options.out / "weights.safetensors", options.out / "grown"
    save_file(small.state_dict(), weights)

    console.print("\n[bold]2. Grow it to the size of a ViT-B[/bold]")
    shutil.rmtree(folder, ignore_errors=True)  # left by an earlier demo: progc never writes into a folder with files
    grow(weights, folder, console)

    console.print("\n[bold]3. Load the result into the same class, compare every held-out image[/bold]")
    start = time.monotonic()
    grown = DigitsViT(**GROWN_SIZE)
    grown.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    before, after = predict(small, test_images), predict(grown, test_images)
    compare_seconds = time.monotonic() - start

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    console.print(summary(small, grown, (before, after), test_labels))
    console.print(timings(train_seconds, report, compare_seconds))
    same = same_answers(before, after)
    console.print(f"same prediction on {same} of {len(test_labels)} images", style="bold")
    console.print(f"largest difference of any logit: {(before - after).abs().max():.1e} (float32)")
    console.print(f"progc's own check: {report['max_rel_diff']:.1e} relative (float64), lossless: {report['lossless']}")
    if options.picture:
        console.save_svg(str(options.picture), title="digits_demo.py")
    return 0 if same == len(test_labels) else 1


if __name__ == "__main__":
    sys.exit(main())
