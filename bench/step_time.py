"""Step time of compiled stage modules over torch.compile of the original module, and the time that compiling takes.

    python bench/step_time.py [MODEL ...] [--rounds 40] [--device cuda] [--amp bf16] [--large]    some minutes a model

A vision transformer, a ConvNeXt and a DiT train one step after another in three forms, in turns and in one process:
`torch.compile(module)` of the original module, the stage module as one graph, and the stage module with one compiled
function per kind of block. A step is forward, backward, AdamW. A figure is the median of the ratios of neighbours in
time, with quartiles. Compile seconds are those of the first step, in an empty cache, without worker processes (CPU
seconds of this process). Then a ViT of 6 and of 24 blocks: compile CPU seconds of each form at both depths, each in a
separate process. `--large` takes ViT-B, DeiT-S and DiT-XL/2 at their usual sizes (a GPU). Writes
bench/results/step_time.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait take no CPU time, here or from others
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="progc-bench-")

import torch
from torch import Tensor, nn

import progc
from bench.common import child, write_json
from progc.emit import emit

LIMITS = {"best": 1.03, "regions": 1.06, "compile, depth 24 over 6": 1.25}
Built = tuple[nn.Module, tuple[Any, ...]]


def vit(depth: int = 6) -> Built:
    """Embedding dim 192, 64 x 64 images, patches of 8."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=64, patch_size=8, embed_dim=192, depth=depth, num_heads=3, num_classes=100)
    return model, (torch.randn(8, 3, 64, 64),)


def convnext() -> Built:
    """Embedding dims 48, 96, 192, 384, 64 x 64 images."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(2, 2, 4, 2), dims=(48, 96, 192, 384), num_classes=100), (torch.randn(8, 3, 64, 64),)


def dit() -> Built:
    """Embedding dim 192, latents of 16 x 16, patches of 2."""
    return _dit(16, 6, 3, 64, 8)


def _timm(name: str, batch: int) -> Callable[[], Built]:
    def build() -> Built:
        import timm

        return timm.create_model(name), (torch.randn(batch, 3, 224, 224),)

    return build


def _dit(size: int, depth: int, heads: int, head_dim: int, batch: int) -> Built:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, in_channels=4, out_channels=8, num_layers=depth,
        sample_size=size, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    for module in model.modules():  # labels dropped at random would make the forms' losses differ
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, size, size, generator=generator)
    steps = torch.randint(0, 1000, (batch,), generator=generator)
    return model, (latents, steps, torch.randint(0, 1000, (batch,), generator=generator))


MODELS: dict[str, Callable[[], Built]] = {"vit": vit, "convnext": convnext, "dit": dit}
LARGE: dict[str, Callable[[], Built]] = {
    "vit_base_patch16_224": _timm("vit_base_patch16_224", 64),
    "deit_small_patch16_224": _timm("deit_small_patch16_224", 128),
    "dit_xl_2": lambda: _dit(32, 28, 16, 72, 16),
}
WAYS = ("torch.compile", "whole", "regions")


class Form:
    """One way to compile one module, with its own optimizer."""

    def __init__(self, way: str, module: nn.Module, args: tuple[Any, ...], device: str, amp: str) -> None:
        if way == "torch.compile":
            self.module = module
            self.call: Any = torch.compile(module, dynamic=False)
        else:
            program = progc.capture(module, args)
            self.module = self.call = emit(program, "whole" if way == "whole" else "regions", modes=("train",))
        self.module.to(device).train()
        self.args = tuple(value.to(device) if isinstance(value, Tensor) else value for value in args)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4)
        self.device, self.amp = device, amp
        start = time.process_time()
        self.loss = self.step()
        self.compile_seconds = time.process_time() - start

    def step(self) -> float:
        """One step; its loss."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.amp == "bf16"):
            output = self.call(*self.args)
            output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            loss = output.float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def timed(self) -> float:
        """Seconds of a step."""
        start = time.perf_counter()
        self.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def measured(name: str, build: Callable[[], Built], rounds: int, device: str, amp: str) -> dict[str, Any]:
    """Seconds of every form, and ratios to torch.compile of pairs of neighbours in time."""
    torch.manual_seed(0)
    model, args = build()
    forms = {}
    for way in WAYS:
        torch._dynamo.reset()
        forms[way] = Form(way, copy.deepcopy(model), args, device, amp)
    losses = [form.loss for form in forms.values()]
    assert max(losses) - min(losses) <= (1e-2 if amp == "bf16" else 1e-4) * abs(losses[0]) + 1e-6, losses
    for form in forms.values():
        for _ in range(3):
            form.step()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    shuffled = random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for way in order:
            seconds[way].append(forms[way].timed())
    row: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "milliseconds": {way: round(1e3 * statistics.median(found), 3) for way, found in seconds.items()},
        "compile_cpu_seconds": {way: round(form.compile_seconds, 2) for way, form in forms.items()},
    }
    for way in WAYS[1:]:
        pairs = [a / b for a, b in zip(seconds[way], seconds["torch.compile"], strict=True)]
        row[f"{way} over torch.compile"] = [round(value, 4) for value in statistics.quantiles(pairs, n=4)]
    best = min(row[f"{way} over torch.compile"][1] for way in WAYS[1:])
    row["best"], row["regions"] = best, row["regions over torch.compile"][1]
    row["holds"] = best <= LIMITS["best"] and row["regions"] <= LIMITS["regions"]
    return row


def by_depth() -> dict[str, Any]:
    """CPU seconds of compiling at two depths, each in a separate process with an empty cache."""
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        seconds = {}
        for depth in (6, 24):
            row, failed = child(__file__, ["--compile-only", way, str(depth)], 600)
            if row is None:
                raise SystemExit(f"{way} at depth {depth}: {failed}")
            seconds[str(depth)] = row["seconds"]
        found[way] = {"cpu_seconds": seconds, "ratio": round(seconds["24"] / seconds["6"], 3)}
    limit = LIMITS["compile, depth 24 over 6"]
    return {"model": "vit of 6 and 24 blocks", **found, "limit": limit, "holds": found["regions"]["ratio"] <= limit}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join([*MODELS, *LARGE])}")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--amp", default="none", choices=("none", "bf16"))
    parser.add_argument("--large", action="store_true", help="models at their usual sizes")
    parser.add_argument("--no-depth", action="store_true", help="leave out compile time by depth")
    parser.add_argument("--compile-only", nargs=2, metavar=("WAY", "DEPTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile_only:
        way, depth = options.compile_only
        torch.manual_seed(0)
        Form("torch.compile", nn.Linear(4, 4), (torch.randn(2, 4),), "cpu", "none")  # what any first compile takes
        model, args = vit(int(depth))
        print(json.dumps({"seconds": round(Form(way, model, args, "cpu", "none").compile_seconds, 2)}))
        return 0
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    table = {**MODELS, **LARGE}
    unknown = [name for name in options.models if name not in table]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; known are {', '.join(table)}")
    rows: list[dict[str, Any]] = []
    for name in options.models or (LARGE if options.large else MODELS):
        rows.append(measured(name, table[name], options.rounds, options.device, options.amp))
        print(json.dumps(rows[-1]), flush=True)
        torch._dynamo.reset()
    depth = None if options.no_depth else by_depth()
    if depth is not None:
        print(json.dumps(depth), flush=True)
    facts = {"device": options.device, "amp": options.amp, "rounds": options.rounds, "limits": LIMITS}
    write_json("step_time", {**facts, "models": rows, "compile": depth})
    return 0 if all(row["holds"] for row in [*rows, *([depth] if depth else [])]) else 1


if __name__ == "__main__":
    sys.exit(main())
