"""Measures what the method cards in this folder state; prints one line per figure and writes evidence.json beside it.

    python docs/passes/evidence.py        some minutes on one core

A small network (examples/digits_vit.py: depth 2, width 48, 3 heads) trains for 300 steps, is grown in every way, and
trains for 600 more with a fresh AdamW. Every loss is that of the held-out images, as a ratio within the run: `after
growth` to the loss before growth, `after training` to the small network that simply trained on. Medians of five seeds,
smallest and largest beside them.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))
from digits_vit import DigitsViT, load_digits, shifted  # noqa: E402

VARIANTS = {
    "none": "",
    "width copy": "grow-width{width=*2}",
    "width copy, noise 0": "grow-width{width=*2 noise=0.0}",
    "width zero": "grow-width{width=*2 init=zero}",
    "width random": "grow-width{width=*2 init=random}",
    "depth identity": "grow-depth{to=*2}",
    "depth interpolate": "grow-depth{to=*2 init=interpolate}",
    "depth stack": "grow-depth{to=*2 init=stack}",
    "depth random": "grow-depth{to=*2 init=random}",
}
STEPS_BEFORE, STEPS_AFTER, BATCH, SEEDS = 300, 600, 64, 5


def held_out_loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross entropy in eval mode."""
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(images), labels).item()


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, seed: int) -> dict[int, float]:
    """AdamW at 5e-4 on shifted images, the same images in the same order for every variant of a seed.

    Returns:
        How differently neighbouring hidden units of the first block (copies, after growth by two) have moved after 1,
        10 and all steps: distance between the changes of their rows, relative to the size of the changes.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    model.train()
    start = model.state_dict()["blocks.0.expand.weight"].clone()
    parted = {}
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(shifted(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, 10, steps):
            moved = model.state_dict()["blocks.0.expand.weight"] - start
            parted[step] = ((moved[1::2] - moved[::2]).norm(dim=1).mean() / moved.norm(dim=1).mean()).item()
    return parted


def main() -> None:
    """Runs everything."""
    torch.set_num_threads(1)
    train_x, train_y, test_x, test_y = load_digits()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        small = DigitsViT(depth=2, width=48, heads=3)
        train(small, train_x, train_y, STEPS_BEFORE, seed)
        before = held_out_loss(small, test_x, test_y)
        program = progc.capture(small, (test_x[:4],))
        continued = 0.0
        for name, pipeline in VARIANTS.items():
            # A copy even where nothing grows: every variant starts from the same weights.
            grown = progc.apply(program, pipeline)
            model = DigitsViT(*_sizes(name))
            model.load_state_dict(grown.state_dict())
            own = found[name]
            own.setdefault("after growth", []).append(held_out_loss(model, test_x, test_y) / before)
            parted = train(model, train_x, train_y, STEPS_AFTER, seed + 100)
            after = held_out_loss(model, test_x, test_y)
            continued = continued or after
            own.setdefault("after training", []).append(after / continued)
            if name.startswith("width copy"):
                for step, distance in parted.items():
                    own.setdefault(f"copies apart, step {step}", []).append(distance)
    summary = {
        name: {what: [round(f(values), 4) for f in (statistics.median, min, max)] for what, values in figures.items()}
        for name, figures in found.items()
    }
    for name, figures in summary.items():
        for what, (median, least, most) in figures.items():
            print(f"{name:20}  {what:26}  {median:9.4f}  ({least:.4f} to {most:.4f})")
    data = {"torch": torch.__version__, "seeds": SEEDS, "steps": [STEPS_BEFORE, STEPS_AFTER], "ratios": summary}
    (HERE / "evidence.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _sizes(name: str) -> tuple[int, int, int]:
    """Depth, width and heads after growth."""
    return (4 if name.startswith("depth") else 2, *((96, 6) if name.startswith("width") else (48, 3)))


if __name__ == "__main__":
    main()
