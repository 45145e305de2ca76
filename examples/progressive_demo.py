"""What `make demo` runs: one network trained twice with `progc train`, at full size throughout and progressively.

Both runs take the same number of epochs over scikit-learn's handwritten digits, with the same settings. The second one
begins with a quarter of the blocks and grows at three boundaries, each of which is checked in float64.
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
    """The path as one would type it here: relative where it lies below."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def train(stages: int, out: Path, more: list[str], console: Console) -> dict[str, Any]:
    """Runs the command a user would type; its progress goes straight to the terminal."""
    options = ["train", typed(CONFIG), "--stages", str(stages), "--out", typed(out), *more]
    console.print(f"\n[bold]$ progc {' '.join(options)}[/bold]", highlight=False, soft_wrap=True)
    program = Path(sys.executable).with_name("progc")
    command = [str(program), *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def boundaries(run: Path) -> list[dict[str, Any]]:
    """What the run wrote about its boundaries."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "boundary"]


def accuracy(run: Path) -> float:
    """Part of the held-out digits that the written weights, in the user's own class, get right."""
    model = build()
    model.load_state_dict(load_file(run / "model.safetensors"), strict=True)
    _, _, images, labels = load_digits()
    return float((predict(model, images).argmax(1) == labels).double().mean())


def main() -> int:
    """Trains both and compares them. Exit code 1 where a boundary changed the function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / ".demo", help="folder of the demo (default .demo)")
    parser.add_argument("--epochs", type=int, help="of each run (default: as the config has it)")
    parser.add_argument("--picture", type=Path, help="also write what is shown as an SVG")
    options = parser.parse_args()
    console = Console(record=options.picture is not None, width=112 if options.picture else None)
    more = [] if options.epochs is None else ["--epochs", str(options.epochs)]

    runs = {"full size": (1, options.out / "full"), "progressive": (4, options.out / "progressive")}
    seconds, right = {}, {}
    for number, (name, (stages, run)) in enumerate(runs.items(), 1):
        shutil.rmtree(run, ignore_errors=True)  # of an earlier demo: progc goes on with a run that is there
        console.print(f"\n[bold]{number}. Train the network {'at' if stages == 1 else 'in stages:'} {name}[/bold]")
        seconds[name] = train(stages, run, more, console)["train_seconds"]
        right[name] = accuracy(run)

    console.print("\n[bold]3. Side by side[/bold]")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "seconds of training", "held-out digits right"):
        table.add_column(column, justify="left" if not column else "right")
    for name in runs:
        table.add_row(name, f"{seconds[name]:.1f}", f"{right[name]:.2%}")
    console.print(table)
    console.print(
        f"speed-up: {seconds['full size'] / seconds['progressive']:.2f}x, same epochs, same settings", style="bold"
    )

    crossed = boundaries(options.out / "progressive")
    for line in crossed:
        console.print(
            f"stage {line['stage'] + 1} began at step {line['step']}: loss {line['loss_before']:.4f} before, "
            f"{line['loss_after']:.4f} after; outputs differ by {line['max_rel_diff']:.1e} (float64)",
            highlight=False,
        )
    if options.picture:
        console.save_svg(str(options.picture), title="make demo")
    return 0 if all(line["lossless"] for line in crossed) else 1


if __name__ == "__main__":
    sys.exit(main())
