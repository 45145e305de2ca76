"""What a zero-shot search costs inside a run: seconds of its decisions as a share of the run, for a DiT of 12 blocks.

    python bench/zero_shot_time.py [--steps 2400] [--threads 1]        about five minutes

A class-conditional diffusion transformer learns the noise in scikit-learn's digits (8 x 8 pixels, four channels as
latents have them), with `progc.Trainer`. It trains in four stages, of which the first three are decided in training:
candidates are four levels of three shapes of unfreezing. `share` is the time of the three decisions over that of the
whole run, both from its `metrics.jsonl`; `steps_per_decision` says how many full steps a decision is worth, from which
the share of a run of any length follows. Writes bench/results/zero_shot_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import progc
from bench.common import write_json
from examples.digits_vit import load_digits

BLOCKS, STAGES, BATCH, LIMIT = 12, 4, 32, 0.05


def model() -> torch.nn.Module:
    """Embedding dim 96, four heads, 16 tokens; labels and timesteps condition every block."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=BLOCKS, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip


def samples() -> TensorDataset:
    """Noisy images, timesteps, classes, and the noise that is to be found: every digit at one timestep."""
    images, labels, _, _ = load_digits()
    generator = torch.Generator().manual_seed(0)
    clean = images.expand(-1, 4, -1, -1) * 2 - 1
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(0, 1000, (len(clean),), generator=generator)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[times].reshape(-1, 1, 1, 1)
    return TensorDataset(kept.sqrt() * clean + (1 - kept).sqrt() * noise, times, labels, noise)


def inputs(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the network is called with."""
    return (batch[0],), {"timestep": batch[1], "class_labels": batch[2]}


def loss(outputs: Any, batch: Any) -> torch.Tensor:
    """Mean squared error of the noise."""
    found = outputs["sample"] if isinstance(outputs, dict) else outputs[0]
    return F.mse_loss(found, batch[3])


def measured(strategy: str, steps: int, folder: Path) -> dict[str, Any]:
    """Trains, and returns seconds of the run, of its decisions and of a step."""
    data = samples()
    example = [tensor[:2] for tensor in data.tensors]
    args, kwargs = inputs(example)
    program = progc.capture(model(), args, kwargs)
    space = {"depths": "none", "widths": "none", "resolutions": "none"}
    schedule = progc.plan(
        program, strategy=strategy, stages=STAGES if strategy != "linear" else 1, total=steps, unit="steps",
        decide="training" if strategy != "linear" else "before",
        unfreeze="interleave:4,prefix:4,suffix:4" if strategy != "linear" else "none", **space,
    )  # fmt: skip
    settings = progc.Settings(batch=BATCH, compile="eager", save_every=None, log_every=100, lr=3e-4)
    begin = time.perf_counter()
    result = progc.Trainer(
        schedule, program=program, task=progc.Task(data, loss=loss, inputs=inputs), run=folder, settings=settings
    ).fit()
    if not result.finished:
        raise SystemExit("stopped by a signal; nothing is written")
    seconds = time.perf_counter() - begin
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    decisions = [line for line in lines if line["kind"] == "decision"]
    return {
        "seconds": round(seconds, 2), "decisions": [round(line["measured"]["seconds_search"], 3) for line in decisions],
        "candidates": [len(line["scores"]["candidates"]) for line in decisions],
        "chosen": [line["point"] for line in decisions],
    }  # fmt: skip


def main() -> int:
    """Returns 1 if the share is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps of the run")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        full = measured("linear", max(options.steps // 40, 1), Path(folder) / "full")
        found = measured("zero-shot", options.steps, Path(folder) / "searched")
    step = full["seconds"] / max(options.steps // 40, 1)
    spent = sum(found["decisions"])
    share = spent / found["seconds"]
    write_json(
        "zero_shot_time",
        {
            "blocks": BLOCKS, "steps": options.steps, "batch": BATCH, **found, "share": round(share, 4),
            "limit": LIMIT, "seconds_per_full_step": round(step, 4),
            "steps_per_decision": round(spent / len(found["decisions"]) / step, 1),
        },
    )  # fmt: skip
    print(f"{spent:.1f} s of searches in {found['seconds']:.1f} s: {share:.2%} (limit {LIMIT:.0%})")
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
