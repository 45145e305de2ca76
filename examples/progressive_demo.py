"""What `make demo` runs: one network trained twice with `progc train`, at full size throughout and progressively.

Both runs take the same number of epochs over scikit-learn's handwritten digits, with the same settings. The second
begins with a quarter of the blocks and grows at three boundaries. The demo then prints what was trained, what grew,
what it cost and what came out. Exit code 1 if a boundary changed the function of the network.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from digits_vit import load_digits, predict
from progressive_vit import build
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "digits.toml"


def typed(path: Path) -> str:
    """Returns the path as a user would type it: relative if it lies below the current folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def train(stages: int, out: Path, more: list[str], console: Console) -> dict[str, Any]:
    """Runs `progc train` as a user would, with its progress on the terminal, and returns its report."""
    options = ["train", typed(CONFIG), "--stages", str(stages), "--out", typed(out), *more]
    console.print(f"[bold]$ progc {' '.join(options)}[/bold]", highlight=False, soft_wrap=True)
    program = Path(sys.executable).with_name("progc")
    done = subprocess.run([str(program), *options, "--json"], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def boundaries(run: Path) -> list[dict[str, Any]]:
    """Returns the records of a run's boundaries, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "boundary"]


def accuracy(run: Path) -> float:
    """Loads the written weights into the plain class and returns the accuracy on held-out digits, in [0, 1]."""
    model = build()
    model.load_state_dict(load_file(run / "model.safetensors"), strict=True)
    _, _, images, labels = load_digits()
    return float((predict(model, images).argmax(1) == labels).double().mean())


def columns(*names: str) -> Table:
    """Returns an empty table; its first column is aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if place else "left")
    return table


def growth(run: Path, steps: int) -> Table:
    """Returns one row per stage: its size, when it ran, and what growth changed when it began."""
    stages = json.loads((run / "plan.json").read_text(encoding="utf-8"))["stages"]
    crossed = {line["stage"]: line for line in boundaries(run)}
    begins = [crossed[stage["index"]]["step"] if stage["index"] else 0 for stage in stages]
    table = columns("stage", "steps", "blocks", "parameters", "loss before growth", "loss after", "outputs differ by")
    for stage, begin, end in zip(stages, begins, [*begins[1:], steps], strict=True):
        depth = sum(stage["point"]["depths"].values())
        row = [str(stage["index"] + 1), f"{begin} to {end}", str(depth), f"{stage['cost']['parameters']:,}"]
        line = crossed.get(stage["index"])
        if line is not None:
            row += [f"{line['loss_before']:.4f}", f"{line['loss_after']:.4f}", f"{line['max_rel_diff']:.1e}"]
        table.add_row(*row)
    return table


def story(reports: dict[str, dict[str, Any]], right: dict[str, float], console: Console) -> bool:
    """Prints what was trained, what grew, what it cost and what came out. Returns whether all growth was lossless."""
    full, progressive = reports["full size"], reports["progressive"]
    run = Path(progressive["run"])
    stages = json.loads((run / "plan.json").read_text(encoding="utf-8"))["stages"]
    first, last = (sum(stage["point"]["depths"].values()) for stage in (stages[0], stages[-1]))

    console.print("\n[bold]What was trained[/bold]")
    console.print(
        f"A vision transformer with {last} blocks and {stages[-1]['cost']['parameters']:,} parameters, on 1,437 images "
        f"of handwritten digits.\nBoth runs had the same settings; they took {full['step']} and {progressive['step']} "
        "steps.",
        highlight=False,
    )

    console.print("\n[bold]What grew[/bold]")
    console.print(
        f"The progressive run began with {first} of {last} blocks; progc inserted the others at {len(stages) - 1} "
        "boundaries:",
        highlight=False,
    )
    console.print(growth(run, progressive["step"]), highlight=False)
    crossed = boundaries(run)
    lossless = all(line["lossless"] for line in crossed)
    verdict = (
        "No growth changed what the network computes: outputs differ by float64 rounding only."
        if lossless
        else "A growth changed what the network computes."
    )
    console.print(verdict, highlight=False)

    console.print("\n[bold]What it cost, and what came out[/bold]")
    table = columns("run", "seconds of training", "held-out digits right")
    for name, report in reports.items():
        table.add_row(name, f"{report['train_seconds']:.1f}", f"{right[name]:.2%}")
    console.print(table, highlight=False)
    faster = full["train_seconds"] / progressive["train_seconds"]
    console.print(f"speed-up: {faster:.2f}x, growth included", style="bold")
    console.print(
        f"The trained weights are in {typed(run / 'model.safetensors')}. They were loaded into the plain PyTorch class "
        "for this count.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return lossless


def main() -> int:
    """Trains both and compares them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / ".demo", help="folder of the demo (default .demo)")
    parser.add_argument("--epochs", type=int, help="epochs of each run (default: those of the config)")
    parser.add_argument("--picture", type=Path, help="also write the output as an SVG")
    options = parser.parse_args()
    console = Console(record=options.picture is not None, width=112 if options.picture else None)
    more = [] if options.epochs is None else ["--epochs", str(options.epochs)]

    titles = {"full size": "at full size throughout", "progressive": "progressively, in four stages"}
    runs = {"full size": (1, options.out / "full"), "progressive": (4, options.out / "progressive")}
    reports, right = {}, {}
    for number, (name, (stages, run)) in enumerate(runs.items(), 1):
        shutil.rmtree(run, ignore_errors=True)  # left by an earlier demo: progc would resume it
        console.print(f"\n[bold]{number}. Train the network {titles[name]}[/bold]")
        reports[name] = train(stages, run, more, console)
        right[name] = accuracy(run)
    lossless = story(reports, right, console)
    if options.picture:
        console.save_svg(str(options.picture), title="make demo")
    return 0 if lossless else 1


if __name__ == "__main__":
    sys.exit(main())
