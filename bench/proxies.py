"""Cost of scoring the candidates of a zero-shot search, compared with the same search done as in the published code.

    python bench/proxies.py                       latents of 8x8 and 16x16, levels 1 and 2: the candidates of the
                                                  first stage as published; results in bench/results/proxies.json
    python bench/proxies.py --sizes 16 32         the candidates of the last stage that is searched
    python bench/proxies.py --sizes 32 --levels 1

Candidates are sizes of the latents and levels of interleaved unfreezing (of 4), of a diffusion transformer with 12
blocks of width 384 for latents of 32x32. Results of other candidates are kept in the file. Each side runs in a separate
process, one after the other. CPU seconds and peak memory are those of the search alone, from the built model on; for
ours, making the programs of the candidates counts too.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import RESULTS, child, write_json

BATCH, OF, BLOCKS, FULL = 16, 4, 12, 32
LIMITS = {"cpu": 0.25, "memory": 0.5}
DONE = {
    "published": f"condition number on 2 batches of {BATCH}, a backward per sample with retain_graph, gradients copied "
    f"and kept; ZiCo on 2 batches of {BATCH}, gradients kept as numpy arrays; 6 timed steps of {BATCH}",
    "ours": "the candidate's program is made; condition number of the loss on 2 kernels of 8 samples; ZiCo on 8 "
    "batches of 2 samples; 1 step of 8 samples to warm up and 2 timed",
}


class Latents(torch.utils.data.Dataset[Any]):
    """Noise as latents, what the network should say about it, time steps and labels."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.latents = torch.randn(count, 4, size, size, generator=generator)
        self.targets = torch.randn(count, 8, size, size, generator=generator)
        self.steps = torch.randint(1000, (count,), generator=generator)
        self.labels = torch.randint(1000, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "latent": self.latents[index],
            "target": self.targets[index],
            "step": self.steps[index],
            "label": self.labels[index],
        }


def call(batch: Any) -> Any:
    """The network's inputs."""
    return (batch["latent"],), {"timestep": batch["step"], "class_labels": batch["label"]}


def loss(outputs: Any, batch: Any) -> Tensor:
    """Mean square error."""
    return F.mse_loss(outputs.sample, batch["target"])


def network(size: int) -> nn.Module:
    """The transformer for latents of one size; zeros of its initialisation are perturbed, or it has no gradients."""
    from diffusers import DiTTransformer2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=BLOCKS,
        sample_size=size, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.train()


# --- as published ---------------------------------------------------------------------------------------------------


Parts = dict[str, Callable[[], float]]


def published(model: nn.Module, size: int, level: int) -> Parts:
    """The scoring of one candidate."""
    import numpy

    for name, parameter in model.named_parameters():
        block = name.split(".")[1] if name.startswith("transformer_blocks.") else None
        parameter.requires_grad_(block is None or int(block) % OF < level)
    samples = torch.utils.data.DataLoader(Latents(10 * BATCH, size), batch_size=BATCH)
    batches = list(samples)

    def run(batch: Any) -> Any:
        args, kwargs = call(batch)
        return model(*args, **kwargs)

    def ntk() -> float:
        conditions = []
        for batch in batches[:2]:
            outputs, rows = run(batch).sample, []
            for sample in outputs:
                model.zero_grad()
                sample.sum().backward(retain_graph=True)
                kept = [p.grad.flatten() for n, p in model.named_parameters() if "weight" in n and p.grad is not None]
                rows.append(torch.cat(kept).cpu())
            kernel = torch.tensor([[float(a @ b) for b in rows] for a in rows])
            values = torch.linalg.eigvalsh(torch.nan_to_num(kernel))
            conditions.append(float(values[-1] / values[0]))
        return -sum(conditions) / len(conditions)

    def zico() -> float:
        kept: dict[str, list[Any]] = {}
        for batch in batches[2:4]:
            model.zero_grad()
            loss(run(batch), batch).backward()
            for name, module in model.named_modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.grad is not None:
                    kept.setdefault(name, []).append(module.weight.grad.flatten().numpy().copy())
        score = 0.0
        for rows in kept.values():
            gradients = numpy.array(rows)
            spread = gradients.std(0)
            varying = spread > 0
            score += float(numpy.log((numpy.abs(gradients).mean(0)[varying] / spread[varying]).sum()))
        return score

    def timed() -> float:
        seconds = 0.0
        for batch in batches[4:]:
            start = time.perf_counter()
            model.zero_grad()
            loss(run(batch), batch).backward()
            seconds += time.perf_counter() - start
        return seconds / 6

    return {"ntk": ntk, "zico": zico, "time": timed}


# --- ours -----------------------------------------------------------------------------------------------------------


def task() -> Any:
    """Two batches of full size."""
    from progc.data.task import Task

    return Task(Latents(2 * BATCH, FULL), loss=loss, inputs=call)


def captured() -> Any:
    """The full program."""
    import progc

    args, kwargs = call(next(task().batches(2, seed=0)))
    return progc.capture(network(FULL), args, kwargs)


def ours(program: Any, size: int, level: int) -> Parts:
    """The scoring of one candidate."""
    from progc.schedule import Point, Unfreeze
    from progc.schedule.building import stage_program
    from progc.search.proxies import load_proxy

    own = task()
    batches = list(own.batches(BATCH, seed=0))
    made: list[Any] = []

    def candidate() -> float:
        made.append(stage_program(program, Point(resolution=(size, size), unfreeze=Unfreeze("interleave", level, OF))))
        return 0.0

    def timed() -> float:
        module = made[0].module().train()
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        seconds = []
        for batch in [own.fitted(batch, made[0]) for batch in own.batches(BATCH // 2, seed=0, count=3)]:
            start = time.perf_counter()
            torch.autograd.grad(loss(own.run(module, batch), batch), learning, allow_unused=True)
            seconds.append(time.perf_counter() - start)
        return sum(seconds[1:]) / 2

    return {
        "program": candidate,
        "ntk": lambda: load_proxy("ntk")().score(made[0], batches[:1], own, seed=0),
        "zico": lambda: load_proxy("zico")().score(made[0], batches[1:], own, seed=0),
        "time": timed,
    }


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(side: str, sizes: list[int], levels: list[int]) -> dict[str, Any]:
    """One side's search: CPU seconds by candidate and part, and peak memory above that of the built models in MiB."""
    models = {size: network(size) for size in sizes} if side == "published" else {}
    program = captured() if side == "ours" else None
    rows = []
    before = _memory(reset=True)
    for size in sizes:
        for level in levels:
            parts = published(models[size], size, level) if side == "published" else ours(program, size, level)
            row: dict[str, Any] = {"size": size, "level": level, "cpu": {}, "scores": {}}
            for name, part in parts.items():
                start = time.process_time()
                score = part()
                row["cpu"][name] = round(time.process_time() - start, 2)
                if name != "program":
                    row["scores"][name] = score
            rows.append(row)
            print(side, json.dumps(row), file=sys.stderr, flush=True)
            for model in models.values():
                model.zero_grad()
    total = sum(sum(row["cpu"].values()) for row in rows)
    return {"cpu": round(total, 1), "peak_mib": round(_memory() - before, 1), "candidates": rows}


def _memory(reset: bool = False) -> float:
    """Peak resident memory in MiB; with `reset` the present one, from where on the peak is counted."""
    status = Path("/proc/self/status")
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    text = status.read_text(encoding="utf-8")
    key = "VmRSS:" if reset else "VmHWM:"
    return int(text.split(key)[1].split()[0]) / 1024


def search(sizes: list[int], levels: list[int], limit: float) -> dict[str, Any]:
    """Both sides, one after the other, and the ratios of CPU time and of peaks."""
    found = {}
    for side in DONE:
        row, error = child(__file__, ["--one", side, "--sizes", *map(str, sizes), "--levels", *map(str, levels)], limit)
        if row is None:
            raise SystemExit(f"{side}: {error}")
        found[side] = row
    ratios = {
        "cpu": found["ours"]["cpu"] / found["published"]["cpu"],
        "memory": found["ours"]["peak_mib"] / found["published"]["peak_mib"],
    }
    return {
        "sizes": sizes,
        "levels": levels,
        "ratio": {name: round(value, 3) for name, value in ratios.items()},
        "limit": LIMITS,
        "met": all(ratios[name] <= limit for name, limit in LIMITS.items()),
        **found,
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16], help="of the latents (default: 8 16)")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2], help="of 4 (default: 1 2)")
    parser.add_argument("--limit", type=float, default=7200, help="seconds that one side may take")
    parser.add_argument("--one", choices=list(DONE), help="one side alone, printed and not kept")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.sizes, options.levels)))
        return
    found = search(options.sizes, options.levels, options.limit)
    path = RESULTS / "proxies.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["results"]["searches"] if path.is_file() else []
    kept = [row for row in kept if (row["sizes"], row.get("levels")) != (options.sizes, options.levels)]
    write_json("proxies", {"done": DONE, "searches": [*kept, found]})
    print(json.dumps({key: value for key, value in found.items() if key not in DONE}, indent=2))
    if not found["met"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
