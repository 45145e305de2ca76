"""How far "any network" goes: every family of timm, torchvision, diffusers and transformers, captured and grown.

    python bench/coverage.py                     # everything; under an hour on 2 cores; resumes if it was stopped
    python bench/coverage.py 'timm:conv*' ...    # some models, by glob
    python bench/coverage.py --list

For each model: capture, then growth to `width*2`, `width*1.5`, `depth*2` and both, every one checked in float64 in eval
mode and, where the train graph draws no random numbers, in train mode too. Weights are moved away from their initial
values first, since zeros and ones hide errors. Every model runs in a separate process with limits on time and memory.
Writes bench/results/coverage.json and docs/coverage.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from progc.analysis.axes import axes_of
from progc.analysis.chains import chains_of

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import coverage_page
from bench.common import machine, write_json

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("width*2", "width*1.5", "depth*2", "width*2,depth*2")
ROWS = ROOT / "build" / "coverage.jsonl"
LARGEST = {"timm": 30_000_000}
"""By library, parameters after growth beyond which growth is proved and verified on shapes, but no weights are made."""
OTHERS = 12_000_000
"""The same for the other libraries, of which every published size is in the table."""

SLOW = 5
"""Seconds of the check in eval mode beyond which train mode, at twice the batch, is left out."""


def measure(key: str) -> dict[str, Any]:
    """One row: capture and analysis of one model, and each growth."""
    import logging

    import torch

    import progc
    from bench.models import specs
    from tests.zoo import perturb

    warnings.simplefilter("ignore")
    for name in ("transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = next(spec for spec in specs() if spec.key == key)
    row: dict[str, Any] = {"library": spec.library, "family": spec.family, "model": spec.name, "seconds": {}}
    clock = _Clock(row["seconds"])
    with clock("build"):
        model, args, kwargs = spec.build()
        model = perturb(model).eval()
    row["inputs"] = [list(leaf.shape) for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Tensor)]
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    try:
        with clock("capture"):
            program = progc.capture(model, args, kwargs)
    except progc.ProgcError as error:
        row["captured"] = str(error)
        return row
    row["captured"] = True
    with clock("analyse"):
        table, chains = axes_of(program), chains_of(program)
    row["operations"] = sum(node.op == "call_function" for node in program.graphs["eval"].nodes)
    row["share"] = table.coverage()
    row["pinned"] = _pinned(program)
    row["unknown"] = dict(table.unknown)
    row["chains"] = len(chains)
    most = LARGEST.get(spec.library, OTHERS)
    row["growths"] = {target: _growth(program, target, most) for target in TARGETS}
    return row


def _growth(program: Any, target: str, most: int) -> dict[str, Any]:
    """Outcome of one growth: `lossless` with its differences, `refused` with the reason, or `defect`."""
    from progc.errors import NotLosslessError, TargetError
    from progc.growth.grow import grow_with_report
    from progc.ir.check import stochastic
    from progc.lift.revert import tolerance
    from progc.models.sizes import parse_sizes

    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    entry: dict[str, Any] = {"seconds": seconds}
    factor = 4 * 2 if "," in target else {"width*2": 4, "width*1.5": 2.25, "depth*2": 2}[target]
    try:
        if program.num_parameters() * factor > most:
            return {**entry, **_proved(program, target, most, clock)}
        with clock("grow"):
            growth = grow_with_report(program, parse_sizes(target))
    except (TargetError, NotLosslessError) as error:
        return {**entry, "outcome": "refused", "reason": str(error)}
    except Exception as error:  # anything else is a bug in progc, and the sweep continues
        return {**entry, "outcome": "defect", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    seconds["check"] = growth.report["seconds"].get("check", 0.0)
    seconds["grow"] = round(seconds["grow"] - seconds["check"], 2)
    entry |= {
        "outcome": "lossless" if growth.plan.lossless else "defect",
        "factor": growth.report["params_after"] / growth.report["params_before"],
        "eval": growth.report["max_rel_diff"],
        "notes": [note for note in growth.plan.notes if "stays" in note],
    }
    if seconds["check"] > SLOW:
        entry["notes"].append(f"not run in train mode: more than {SLOW} s for the check in eval mode")
    elif not any(stochastic(graph) for graph in (program.graphs["train"], growth.program.graphs["train"])):
        with clock("train check"):
            _train(program, growth, entry, tolerance(growth.plan.lifts))
    return entry


def _train(program: Any, growth: Any, entry: dict[str, Any], limit: float) -> None:
    from progc.ir.check import compare_train

    try:  # running statistics have other names, or another size, after growth: outputs alone are compared
        entry["train"] = compare_train(program, growth.program, seed=0, buffers={}).max_rel
    except Exception as error:
        entry["train"], entry["reason"] = None, f"train mode: {' '.join(str(error).split())}"
        return
    if not entry["train"] <= limit:
        told = [note for note in growth.plan.notes if "in eval mode" in note]
        if told:  # plain layers with BatchNorm: exact in eval mode, and the plan says so
            entry["train"], entry["eval only"] = None, told[0]
        else:
            entry["reason"] = f"train mode differs by {entry['train']:.1e}"


def _proved(program: Any, target: str, most: int, clock: _Clock) -> dict[str, Any]:
    """Large models: passes, proofs and verifier as always, on shapes alone; no weight is made."""
    from progc.passes.grow_depth import GrowDepth
    from progc.passes.grow_width import GrowWidth
    from progc.pipeline.manager import run

    steps: list[Any] = [GrowDepth(to=("*2",))] if "depth" in target else []
    if "depth*2" in target and not len(chains_of(program)):
        return {"outcome": "refused", "reason": "this network has no chain of blocks"}
    if "width" in target:
        steps.append(GrowWidth(width=f"*{target.partition(',')[0].partition('*')[2]}"))
    with clock("grow"):
        grown, results = run(program.deferred, steps)
    exact = all(result.lossless is not False for result in results)
    reason = f"more than {most // 10**6} M parameters after growth: not measured"
    factor = grown.num_parameters() / program.num_parameters()
    return {"outcome": "proved" if exact else "defect", "factor": factor, "reason": reason}


def _pinned(program: Any) -> list[list[Any]]:
    """Why the parameters off every growable axis stay: `[parameters, reason]`, most first."""
    table = axes_of(program)
    grows = {span.tensor for axis in table.growable for span in axis.spans}
    found: dict[str, int] = {}
    for name, tensor in program.parameters():
        if name not in grows:
            reasons = [axis.reason for axis in table.axes if any(span.tensor == name for span in axis.spans)]
            reason = "; ".join(dict.fromkeys(reasons)) or f"{name}: no axis"
            found[reason] = found.get(reason, 0) + tensor.numel()
    return [[count, reason] for reason, count in sorted(found.items(), key=lambda item: -item[1])[:4]]


class _Clock:
    """Seconds by phase, into a given dict."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._running: list[tuple[str, float]] = []

    def __call__(self, phase: str) -> _Clock:
        self._running.append((phase, time.perf_counter()))
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        phase, start = self._running.pop()
        self._seconds[phase] = round(time.perf_counter() - start, 2)


# -- processes ------------------------------------------------------------------------------------------


def _child(key: str, memory: int, pipe: Connection) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        pipe.send(measure(key))
    except BaseException as error:  # the parent writes it down
        pipe.send({"captured": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})


def sweep(keys: list[str], jobs: int, limit: float, memory: int) -> None:
    """Measures each model in a separate process, `jobs` at a time; appends rows to the file of rows."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "torchvision", "progc", "tests.zoo"])
    waiting, running = list(keys), {}
    start, done = time.perf_counter(), 0
    while waiting or running:
        while waiting and len(running) < jobs:
            key = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(key, memory, theirs), daemon=True)
            process.start()
            theirs.close()
            running[key] = (process, ours, time.perf_counter())
        for key, (process, pipe, since) in list(running.items()):
            spent = time.perf_counter() - since
            if pipe.poll(0.05):
                row = _received(pipe)
            elif not process.is_alive():
                row = {"captured": f"the process ended with {process.exitcode}"}
            elif spent > limit:
                row = {"captured": f"over the time limit of {limit:.0f} s"}
            else:
                continue
            if row is not None and process.is_alive() and spent <= limit:
                process.join(10)
            process.kill()
            process.join()
            del running[key]
            done += 1
            library, _, name = key.partition(":")
            _append({"library": library, "family": "", "model": name, **row, "key": key, "wall": round(spent, 1)})
            elapsed = time.perf_counter() - start
            print(f"{done}/{len(keys)} {elapsed:5.0f} s  {key}: {coverage_page.summary(row)}", flush=True)
        time.sleep(0.05)


def _received(pipe: Connection) -> dict[str, Any]:
    try:
        row: dict[str, Any] = pipe.recv()
    except EOFError:
        return {"captured": "the process died (memory?)"}
    return row


def _append(row: dict[str, Any]) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "versions": _versions()}) + "\n")


def _versions() -> dict[str, str]:
    versions: dict[str, str] = machine()["versions"]
    return versions


def _known() -> dict[str, dict[str, Any]]:
    """Rows of an earlier run with the same libraries, the latest for each model."""
    if not ROWS.exists():
        return {}
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row for row in rows if row.pop("versions") == _versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="globs over names from --list")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds per model")
    parser.add_argument("--memory", type=float, default=9.0, help="GiB per model")
    parser.add_argument("--restart", action="store_true", help="forget the rows of an earlier run")
    parser.add_argument("--page", action="store_true", help="only write the page from the rows that are there")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process per core
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from bench.models import specs

    everything = [spec.key for spec in specs()]
    chosen = [key for key in everything if not options.models or any(fnmatch.fnmatch(key, g) for g in options.models)]
    if not chosen:
        parser.error(f"no model matches {', '.join(options.models)}; --list prints the names")
    if options.list:
        print("\n".join(chosen))
        return
    if options.restart and ROWS.exists():
        ROWS.unlink()
    if not options.page:
        known = _known() if not options.models else {}
        sweep([key for key in chosen if key not in known], options.jobs, options.limit, int(options.memory * 2**30))
    rows = [row for key, row in sorted(_known().items(), key=lambda item: everything.index(item[0]))]
    print(f"written to {write_json('coverage', {'totals': coverage_page.totals(rows), 'models': rows})}")
    print(f"written to {coverage_page.write(rows)}")


if __name__ == "__main__":
    main()
