"""What `make demo` runs: one network trained twice with `progc train`, at full size and in stages that are searched.

Both runs take the same number of epochs over scikit-learn's handwritten digits, with the same settings. The plan of the
second is open: when a stage begins, a one-shot search chooses how many blocks the network has in it, and the steps of
the search belong to the run. The demo then prints what was trained, what the search decided, what grew, what it cost
and what came out. Exit code 1 if a boundary changed the function of the network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Operations of a network this small take microseconds: several threads would mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


def train(out: Path, more: list[str], console: Console) -> dict[str, Any]:
    """Runs `progc train` as a user would, with its progress on the terminal, and returns its report."""
    options = ["train", typed(CONFIG), *more, "--out", typed(out)]
    console.print(f"[bold]$ progc {' '.join(options)}[/bold]", highlight=False, soft_wrap=True)
    program = Path(sys.executable).with_name("progc")
    done = subprocess.run([str(program), *options, "--json"], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def records(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    """Returns the records of one kind in a run's metrics, `boundary` or `decision`, by the index of their stage."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["stage"]: line for line in lines if line["kind"] == kind}


def planned(run: Path) -> list[dict[str, Any]]:
    """Returns the stages of a run's plan, as they were decided."""
    stages: list[dict[str, Any]] = json.loads((run / "plan.json").read_text(encoding="utf-8"))["stages"]
    return stages


def blocks(point: dict[str, Any]) -> int:
    """Returns the number of blocks at a point of the growth space."""
    return sum(point["depths"].values())


def search_steps(decision: dict[str, Any] | None) -> int:
    """Returns how many steps of a stage trained candidates; 0 for a stage without a search."""
    return 0 if decision is None else decision["scores"]["settings"]["steps"]


def counted(run: Path) -> tuple[int, int]:
    """Loads the written weights into the plain class, and returns how many held-out digits are right, of how many."""
    model = build()
    model.load_state_dict(load_file(run / "model.safetensors"), strict=True)
    _, _, images, labels = load_digits()
    return int((predict(model, images).argmax(1) == labels).sum()), len(labels)


def columns(*names: str, left: tuple[int, ...] = (0,)) -> Table:
    """Returns an empty table; the columns in `left` are aligned to the left, all others to the right."""
    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(names):
        table.add_column(name, min_width=max(map(len, name.split())), justify="left" if place in left else "right")
    return table


def choices(run: Path) -> Table:
    """Returns one row per candidate of each search: its loss, what a step of it costs, and why the winner won."""
    table = columns("stage", "blocks", "loss", "cost of a step", "decision", left=(0, 4))
    for stage, decision in records(run, "decision").items():
        found = decision["scores"]
        costs = [candidate["scores"].get("time") for candidate in found["candidates"]]
        for place, candidate in enumerate(found["candidates"]):
            scores, first, chosen = candidate["scores"], place == 0, place == found["winner"]
            table.add_row(
                str(stage + 1) if first else "",
                str(blocks(candidate["point"])),
                f"{scores['loss']:.4f}" if "loss" in scores else "",
                f"{scores['time'] / max(costs):.0%}" if "time" in scores else "",
                "chosen: " + found["reason"].partition(": ")[2] if chosen else "",
            )
    return table


def growth(run: Path, steps: int) -> Table:
    """Returns one row per network that trained: its size, when it trained, and what growth changed when it began."""
    stages, crossed, decided = planned(run), records(run, "boundary"), records(run, "decision")
    begins = [crossed[stage["index"]]["step"] if stage["index"] else 0 for stage in stages]
    table = columns("stage", "steps", "blocks", "parameters", "loss before growth", "loss after", "outputs differ by")
    for stage, begin, end in zip(stages, begins, [*begins[1:], steps], strict=True):
        index = stage["index"]
        line, decision = crossed.get(index), decided.get(index)
        changed = []
        if line is not None:
            changed = [f"{line['loss_before']:.4f}", f"{line['loss_after']:.4f}", f"{line['max_rel_diff']:.1e}"]
        start = begin + search_steps(decision)
        if decision is not None and start > begin:
            deepest = max(blocks(candidate["point"]) for candidate in decision["scores"]["candidates"])
            table.add_row(f"{index + 1}, search", f"{begin} to {start}", f"up to {deepest}", "", *changed)
            changed = []
        size = [str(blocks(stage["point"])), f"{stage['cost']['parameters']:,}"]
        table.add_row(str(index + 1), f"{start} to {end}", *size, *changed)
    return table


def told(right: dict[str, tuple[int, int]]) -> str:
    """Says what the held-out digits can tell about the two networks, and what they cannot."""
    (full, total), (progressive, _) = right.values()
    apart = abs(progressive - full)
    images = f"{apart} image{'' if apart == 1 else 's'}"
    limit = f"With {total} held-out images, differences of about 1 % are chance"
    if apart <= 0.01 * total:
        return f"{limit}: these two, {images} apart, are equal as far as they can tell."
    ahead = "progressive" if progressive > full else "full size"
    return (
        f"{limit}. Here {ahead} is ahead by {images} ({apart / total:.1%}); another seed may give another difference."
    )


def story(
    reports: dict[str, dict[str, Any]], right: dict[str, tuple[int, int]], epochs: float, console: Console
) -> bool:
    """Prints what was trained, decided and grown, what it cost and what came out. Returns whether growth was lossless.

    Args:
        reports: the reports of `progc train`, by the name of the run: `full size` and `progressive`.
        right: how many held-out digits each network has right, of how many.
        epochs: length of each run.
        console: where it is printed.
    """
    full, progressive = reports["full size"], reports["progressive"]
    run = Path(progressive["run"])
    stages, crossed, decided = planned(run), records(run, "boundary"), records(run, "decision")
    searched = sum(map(search_steps, decided.values()))

    def tell(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False)

    tell("\nWhat was trained", "bold")
    steps = [full["step"], progressive["step"]]
    lengths = f"{steps[0]} steps each" if steps[0] == steps[1] else f"{steps[0]} and {steps[1]} steps"
    tell(
        f"A vision transformer with {blocks(stages[-1]['point'])} blocks and {stages[-1]['cost']['parameters']:,} "
        f"parameters, on 1,437 images of handwritten digits. Both runs took {epochs:g} epochs with the same settings: "
        f"{lengths}."
    )

    tell("\nWhat the search decided", "bold")
    tell(
        f"Only the last of {len(stages)} stages was planned: the full network. When an earlier one began, candidates "
        "trained inside one network with shared weights, one of them in each step. They were then compared on the same "
        "images, and training continued with the winner's part of the weights. The cost of a step is predicted, "
        "relative to the largest candidate."
    )
    console.print(choices(run), highlight=False)

    tell("What grew", "bold")
    console.print(growth(run, progressive["step"]), highlight=False)
    lossless = all(line["lossless"] for line in crossed.values())
    tell(
        "No growth changed what the network computes: outputs differ by float64 rounding at most."
        if lossless
        else "A growth changed what the network computes."
    )

    tell("\nWhat it cost, and what came out", "bold")
    table = columns("run", "seconds of training", "of them choosing", "and growing", "held-out digits right")
    phases = [phase for line in decided.values() for phase in line["measured"].items()]
    choosing = sum(seconds for name, seconds in phases if name.startswith("seconds_"))
    spent = [choosing, sum(line["measured"]["seconds_lost"] for line in crossed.values())]
    for name, own in (("full size", [0.0, 0.0]), ("progressive", spent)):
        count, total = right[name]
        seconds = [f"{number:.1f}" for number in (reports[name]["train_seconds"], *own)]
        table.add_row(name, *seconds, f"{count} of {total} ({count / total:.2%})")
    console.print(table, highlight=False)
    faster = full["train_seconds"] / progressive["train_seconds"]
    tell(f"speed-up: {faster:.2f}x, searches and growth included", "bold")
    if faster <= 1:
        tell("The search did not pay in a run of this length.")
    tell(
        f"The searches were part of training: {searched} of the {progressive['step']} steps trained candidates. "
        f"{told(right)}"
    )
    console.print(
        f"The weights, {typed(run / 'model.safetensors')}, load into the plain PyTorch class with strict=True; this is "
        "how the digits were counted.",
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

    runs = {
        "full size": ("at full size throughout", ["--stages", "1", "--shares", "even", *more], options.out / "full"),
        "progressive": ("in stages; a one-shot search decides each of them", more, options.out / "progressive"),
    }
    reports, right = {}, {}
    for number, (name, (title, own, run)) in enumerate(runs.items(), 1):
        shutil.rmtree(run, ignore_errors=True)  # left by an earlier demo: progc would resume it
        console.print(f"\n[bold]{number}. Train the network {title}[/bold]")
        reports[name] = train(run, own, console)
        right[name] = counted(run)
    epochs = json.loads((options.out / "full" / "config.json").read_text(encoding="utf-8"))["epochs"]
    lossless = story(reports, right, epochs, console)
    if options.picture:
        console.save_svg(str(options.picture), title="make demo")
    return 0 if lossless else 1


if __name__ == "__main__":
    sys.exit(main())
