"""Seconds and peak memory of `progc grow`, as users run it: a separate process, from start to written files.

    python bench/grow.py                  # ViT-Ti to ViT-B; about a minute
    python bench/grow.py SOURCE TARGET    # any other pair

Memory above that of a process which only imports torch is given relative to the bytes of the grown weights. Each
figure is the median of several runs with a thread per core. Writes bench/results/grow.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import write_json

ROOT = Path(__file__).resolve().parent.parent
PAIR = ("timm:vit_tiny_patch16_224", "timm:vit_base_patch16_224")


def run(arguments: list[str], folder: str) -> tuple[dict[str, float], str]:
    """Wall and CPU seconds and the peak resident bytes of `python ARGUMENTS`; and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)  # usage of this child alone
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"python {' '.join(arguments)} ended with {process.returncode}: {err.read()}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        figures = {"wall": round(wall, 2), "cpu": round(usage.ru_utime + usage.ru_stime, 2), "peak_bytes": peak}
        return figures, out.read()


def measure(source: str, target: str) -> dict[str, Any]:
    """One growth with everything that a user gets: check, plan, report and weights on disk."""
    with tempfile.TemporaryDirectory() as folder:
        figures, text = run(["-m", "progc", "grow", source, "--to", target, "--out", "grown", "--json"], folder)
        weights = (Path(folder) / "grown" / "model.safetensors").stat().st_size
    report = json.loads(text)
    return {
        **figures,
        "weights_bytes": weights,
        "phases": report["seconds"],
        "lossless": report["lossless"],
        "max_rel_diff": report["max_rel_diff"],
        "params": [report["params_before"], report["params_after"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="*", metavar="SOURCE TARGET", help=f"default: {' '.join(PAIR)}")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the medians count")
    options = parser.parse_args()
    if len(options.pair) not in (0, 2):
        parser.error("give a source and a target, or neither")
    source, target = options.pair or PAIR
    imports = [run(["-c", "import torch"], ".")[0] for _ in range(options.repeats)]
    bare = {key: statistics.median(figures[key] for figures in imports) for key in ("wall", "peak_bytes")}
    runs = []
    for number in range(options.repeats):
        figures = measure(source, target)
        runs.append(figures)
        print(f"run {number + 1}: {figures['wall']:.1f} s, {figures['cpu']:.1f} CPU s, ", end="")
        print(f"{figures['peak_bytes'] / 1e6:.0f} MB, {figures['phases']}", flush=True)
    middle = {key: statistics.median(figures[key] for figures in runs) for key in ("wall", "cpu", "peak_bytes")}
    ratio = (middle["peak_bytes"] - bare["peak_bytes"]) / runs[0]["weights_bytes"]
    summary = {
        "source": source,
        "target": target,
        "median": middle,
        "import_torch": bare,
        "weights_bytes": runs[0]["weights_bytes"],
        "memory_above_torch_per_weights": round(ratio, 2),
        "runs": runs,
    }
    print(f"{source} to {target}: {middle['wall']:.1f} s, {middle['cpu']:.1f} CPU s")
    print(f"peak {middle['peak_bytes'] / 1e6:.0f} MB; above `import torch`: {ratio:.2f} x the grown weights")
    print(f"written to {write_json('grow', summary)}")


if __name__ == "__main__":
    main()
