"""What every measurement writes besides its numbers: machine, versions and date. Files are written atomically."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from progc.files.writing import replacing

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("torch", "timm", "torchvision", "diffusers", "transformers", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, load at the start, accelerators, versions of Python and of the libraries, date (UTC)."""
    import torch

    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def median_seconds(run: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Median wall and CPU seconds of `run()`. CPU seconds stay meaningful on a machine that has other work."""
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return {"wall": round(statistics.median(wall), 4), "cpu": round(statistics.median(cpu), 4)}


def write_json(name: str, results: Any) -> Path:
    """Writes `{"machine": ..., "results": ...}` to `bench/results/NAME.json` atomically; returns the path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), "results": results}, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def child(script: str, arguments: list[str], limit: float) -> tuple[dict[str, Any] | None, str]:
    """Runs `python SCRIPT ARGUMENTS` with one thread; the JSON object on its last line, or None and what went wrong."""
    root = str(RESULTS.parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(Path(script).resolve()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return None, f"not done after {limit:.0f} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return None, lines[-1][:300] if lines else f"ended with {done.returncode}"
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row, ""


def known(name: str) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs in `bench/results/NAME.json`, by model."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else []
    return {row["model"]: row for row in rows}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
