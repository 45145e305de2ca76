"""Time and memory of capture, analysis and growth against size, from 5 million to a billion parameters.

    python bench/cost.py [MODEL ...]     # these models; results are merged into bench/results/cost.json
    python bench/cost.py --list
    python bench/cost.py --report        # docs/cost.md and docs/cost.svg from the results, nothing is run

Every model runs in a separate process with one thread: built untrained at 224 pixels, captured with its weights,
analysed, grown into a safetensors file and checked in float64. Seconds are CPU seconds. Memory is the peak resident
size above that of the process after its imports, over the bytes of the grown weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import child, known, write_json
from bench.cost_report import PHASES

# Name in the tables: series, timm name, options, growth. Growth is to twice the width (four times the parameters) while
# the grown network stays near a billion parameters, beyond that to MLPs or a depth that fit.
MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "vit_ti": ("vit", "vit_tiny_patch16_224", {}, "width*2"),
    "vit_s": ("vit", "vit_small_patch16_224", {}, "width*2"),
    "vit_b": ("vit", "vit_base_patch16_224", {}, "width*2"),
    "vit_l": ("vit", "vit_large_patch16_224", {}, "width*2"),
    "vit_h": ("vit", "vit_huge_patch14_224", {}, "mlp*1.25"),
    "vit_g": ("vit", "vit_giant_patch14_224", {}, "mlp*1.25"),
    "resnet18": ("resnet", "resnet18", {}, "width*2"),
    "resnet34": ("resnet", "resnet34", {}, "width*2"),
    "resnet50": ("resnet", "resnet50", {}, "width*2"),
    "resnet101": ("resnet", "resnet101", {}, "width*2"),
    "resnet152": ("resnet", "resnet152", {}, "width*2"),
    "wide_resnet50": ("resnet", "wide_resnet50_2", {}, "width*2"),
    "wide_resnet101": ("resnet", "wide_resnet101_2", {}, "width*2"),
    "wide_resnet101_x4": ("resnet", "resnet101", {"base_width": 256}, "depth*2"),
}


def measure(name: str) -> dict[str, Any]:
    """One row, measured in this process."""
    import timm
    import torch

    import progc
    import progc.passes.grow_depth
    import progc.passes.grow_width
    from progc.analysis.axes import axes_of
    from progc.analysis.chains import chains_of
    from progc.growth.grow import grow_with_report
    from progc.ir.program import Program
    from progc.ir.tensor_file import read_deferred, write_tensors
    from progc.models.sizes import parse_sizes

    torch.set_num_threads(1)
    series, model_name, options, growth = MODELS[name]
    base = _peak()
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def clock(phase: str) -> Iterator[None]:
        start = time.process_time()
        yield
        seconds[phase] = round(seconds.get(phase, 0.0) + time.process_time() - start, 3)

    with clock("build"):
        model = timm.create_model(model_name, **options).eval()
    built = _peak()
    with clock("capture"):
        program = progc.capture(model, (torch.randn(2, 3, 224, 224),))
    captured = _peak()
    for phase in ("axes", "chains"):  # milliseconds: the median of three, as a garbage collection counts more
        spent = [_spent(lambda: getattr(program.replace(), phase)) for _ in range(3)]  # noqa: B023
        seconds[phase] = round(sorted(spent)[1], 3)
    axes_of(program), chains_of(program)
    nodes = len(program.graphs["eval"].nodes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"

        def place(grown: Program) -> Program:
            write_tensors(path, grown.persistent())
            return grown.replace(tensors={**grown.tensors, **read_deferred(path, grown.persistent())})

        result = grow_with_report(program, parse_sizes(growth), progress=clock, place=place)
        grown_bytes = path.stat().st_size
    seconds["plan"] = round(sum(seconds.get(phase, 0.0) for phase in ("analyse", "deepen", "align", "widen")), 3)
    largest = max(tensor.numel() * tensor.element_size() for tensor in result.program.tensors.values())
    return {
        "model": name,
        "series": series,
        "growth": growth,
        "parameters": program.num_parameters(),
        "grown_parameters": result.program.num_parameters(),
        "nodes": nodes,
        "seconds": {phase: seconds[phase] for phase in ("build", *PHASES)},
        "bytes": {
            "source": sum(tensor.nbytes for _, tensor in program.parameters()),
            "grown": grown_bytes,
            "largest_tensor": largest,
            "peak_build": built - base,
            "peak_capture": captured - base,
            "peak": _peak() - base,
        },
        "lossless": result.report["lossless"],
        "max_rel_diff": result.report["max_rel_diff"],
    }


def _spent(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(name: str, limit: float) -> dict[str, Any]:
    """`measure(name)` in a separate process."""
    row, failed = child(__file__, ["--one", name], limit)
    return row or {"model": name, "error": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from --list; all of them if left out")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--report", action="store_true", help="only write docs/cost.md and docs/cost.svg")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one model may take")
    parser.add_argument("--one", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(MODELS))
        return
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.one)))
        return
    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; --list prints the known ones")
    if not options.report:
        for name in options.models or MODELS:
            row = run(name, options.limit)
            sizes = f"{row.get('parameters', 0):,} -> {row.get('grown_parameters', 0):,}"
            print(name, row.get("error") or f"{sizes} {row['seconds']}", flush=True)
            rows = {**known("cost"), name: row}
            write_json("cost", [rows[key] for key in MODELS if key in rows])
    from bench.cost_report import write_report

    write_report(list(known("cost").values()))


if __name__ == "__main__":
    main()
