"""Seconds of capture, axes and chains per model, each also as a ratio to one eager forward of the same model.

    python bench/analysis.py [MODEL ...]          # default: every model of the list below; about two minutes
    python bench/analysis.py --list

Ratios carry from one machine to another far better than seconds do: both are measured in turns in one process, with
one thread. Writes bench/results/analysis.json.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root (for tests.zoo) is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import progc
from bench.common import median_seconds, write_json
from progc.errors import ProgcError
from tests import zoo

# Full size, as people use them; the rest of the list are the small instances of tests/zoo.py.
FULL_SIZE = (
    "vit_base_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet50",
    "resnet101",
)


def names() -> list[str]:
    """Every model this script knows: `timm:NAME` at full size, then the names of the test zoo."""
    return [f"timm:{name}" for name in FULL_SIZE] + [name for name in zoo.NAMES if name.partition(":")[0] != "own"]


def build(name: str) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    library, _, model = name.partition(":")
    if library == "timm" and model in FULL_SIZE:
        import timm

        return timm.create_model(model).eval(), (zoo.image(224),), {}
    return zoo.build(name)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """One row: seconds of each phase, ratios to an eager forward at batch 2, sizes of what was analysed."""
    from progc.analysis.axes.table import analyse
    from progc.analysis.chains import find_chains

    model, args, kwargs = build(name)
    program = progc.capture(model, args, kwargs)  # also warms every cache
    with torch.no_grad():
        forward = median_seconds(lambda: model(*args, **kwargs), repeats)
    row: dict[str, Any] = {
        "model": name,
        "parameters": program.num_parameters(),
        "nodes": len(program.graphs["eval"].nodes),
        "forward": forward,
    }
    phases = {
        "capture": lambda: progc.capture(model, args, kwargs),
        "axes": lambda: analyse(program),
        "chains": lambda: find_chains(program),
    }
    for phase, run in phases.items():
        try:
            row[phase] = median_seconds(run, repeats)
            row[f"{phase}_per_forward"] = round(row[phase]["cpu"] / max(forward["cpu"], 1e-9), 2)
        except ProgcError as error:
            row[phase] = {"error": str(error)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from --list")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--repeats", type=int, default=3, help="runs per figure; the median counts")
    options = parser.parse_args()
    if options.list:
        print("\n".join(names()))
        return
    unknown = [name for name in options.models if name not in names()]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; --list prints the known ones")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    print(f"{'model (CPU seconds)':44} {'nodes':>6} {'forward':>8} {'capture':>8} {'axes':>8} {'chains':>8}")
    for name in options.models or names():
        row = measure(name, options.repeats)
        rows.append(row)
        figures = [f"{row[phase].get('cpu', float('nan')):8.3f}" for phase in ("forward", "capture", "axes", "chains")]
        print(f"{name:44} {row['nodes']:6} {' '.join(figures)}", flush=True)
    print(f"written to {write_json('analysis', rows)}")


if __name__ == "__main__":
    main()
