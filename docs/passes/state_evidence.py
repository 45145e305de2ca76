"""Measures what optimizer-state.md states; prints it, and writes state_evidence.json and optimizer-state.svg beside it.

    python docs/passes/state_evidence.py        about three minutes on one core

A small network (examples/digits_vit.py: depth 2, width 48, 3 heads) trains for 300 steps with AdamW, is grown by two in
width or in depth, and trains on, at a constant rate and on the same images in the same order in every case. Every
figure is the loss of held-out images over that at the moment of growth: medians of five seeds, smallest and largest
beside them. A second measurement compares `mogrow` with `interpolate`, by an average of decay 0.98: the run is short.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))
from digits_vit import DigitsViT, load_digits, shifted  # noqa: E402

WIDE, DEEP = "grow-width{width=*2}", "grow-depth{to=*2}"
# Variant to pipeline, whether the state is mapped, and whether rates are corrected.
VARIANTS: dict[str, tuple[str, bool, bool]] = {
    "not grown": ("", True, False),
    "width, state mapped, rates corrected": (WIDE, True, True),
    "width, state mapped, rates kept": (WIDE, True, False),
    "width, state dropped, rates corrected": (WIDE, False, True),
    "width, state dropped, rates kept": (WIDE, False, False),
    "depth, state mapped": (DEEP, True, False),
    "depth, state dropped": (DEEP, False, False),
    "depth interpolate, state mapped": ("grow-depth{to=*2 init=interpolate}", True, False),
    "depth mogrow, state mapped": ("grow-depth{to=*2 init=mogrow}", True, False),
    "depth mogrow, all, state mapped": ("grow-depth{to=*2 init=mogrow source=all}", True, False),
}
STEPS_BEFORE, BATCH, SEEDS, RATE, DECAY = 300, 64, 5, 1e-3, 0.98
MARKS = (0, 1, 2, 3, 5, 8, 12, 16, 20, 30, 40, 60, 80, 100, 150, 200)
"""Steps after growth at which the held-out loss is taken."""


def held_out_loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross entropy in eval mode."""
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(images), labels).item()
    model.train()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, steps: int, order: torch.Generator) -> None:
    """Steps on shifted training images; `order` decides which ones and how they are shifted."""
    images, labels = data
    for _ in range(steps):
        torch.manual_seed(int(torch.randint(2**31, (), generator=order)))
        chosen = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(shifted(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def curves(seed: int) -> dict[str, list[float]]:
    """The curve of every variant for one seed."""
    train_x, train_y, test_x, test_y = load_digits()
    torch.manual_seed(seed)
    start = DigitsViT(depth=2, width=48, heads=3)
    optimizer = torch.optim.AdamW(start.parameters(), lr=RATE, weight_decay=0.05)
    ema = progc.EMA(start, [DECAY])
    start.train()
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS_BEFORE):
        train(start, optimizer, (train_x, train_y), 1, order)
        ema.update(start)
    before = held_out_loss(start, test_x, test_y)
    weights = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    state = optimizer.state_dict()
    found = {}
    for name, (pipeline, mapped, corrected) in VARIANTS.items():
        small = DigitsViT(depth=2, width=48, heads=3)
        small.load_state_dict(weights)
        again = torch.optim.AdamW(small.parameters(), lr=RATE, weight_decay=0.05)
        again.load_state_dict({"state": {k: _copied(v) for k, v in state["state"].items()}, **_groups(state)})
        program = progc.capture(small, (test_x[:4],))
        grown = progc.apply(program, pipeline, optimizer=again, ema=ema.values()[0], correct_rates=corrected)
        if not mapped:
            again.state.clear()
        model = grown.module().train()
        order = torch.Generator().manual_seed(seed + 1000)
        found[name] = [held_out_loss(model, test_x, test_y) / before]
        for earlier, later in zip(MARKS, MARKS[1:], strict=False):
            train(model, again, (train_x, train_y), later - earlier, order)
            found[name].append(held_out_loss(model, test_x, test_y) / before)
    return found


def _copied(own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() for key, value in own.items()}


def _groups(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"param_groups": state["param_groups"]}


PANELS = {
    "Width times two": {
        "not grown": "#888888",
        "width, state mapped, rates corrected": "#1b7837",
        "width, state mapped, rates kept": "#5aae61",
        "width, state dropped, rates corrected": "#d6604d",
        "width, state dropped, rates kept": "#b2182b",
    },
    "Depth times two": {
        "not grown": "#888888",
        "depth, state mapped": "#1b7837",
        "depth, state dropped": "#b2182b",
    },
}
LAST = 60
"""Steps that the picture shows."""


def picture(data: Mapping[str, Any]) -> str:
    """The curves of both growths as SVG: held-out loss over that at growth, by steps after growth."""
    width, height, left, top = 380, 240, 48, 34
    marks = [mark for mark in data["marks"] if mark <= LAST]
    shown = [name for panel in PANELS.values() for name in panel]
    highest = max(max(row[0] for row in data["losses"][name][: len(marks)]) for name in shown)
    lowest = min(min(row[0] for row in data["losses"][name][: len(marks)]) for name in shown)
    span = highest - lowest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (width + 60)}" height="{height + 176}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, (title, lines) in enumerate(PANELS.items()):
        x0 = left + index * (width + 60)

        def place(step: float, value: float, x0: int = x0) -> str:
            return f"{x0 + step / LAST * width:.1f},{top + (highest - value) / span * height:.1f}"

        parts.append(f'<text x="{x0}" y="20" font-size="14">{title}</text>')
        parts.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#cccccc"/>')
        for tick in range(0, LAST + 1, 20):
            x = x0 + tick / LAST * width
            parts.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">{tick}</text>')
        for value in (lowest, 1.0, highest):
            y = top + (highest - value) / span * height
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        for row, (name, colour) in enumerate(lines.items()):
            points = " ".join(place(step, data["losses"][name][i][0]) for i, step in enumerate(marks))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            y = top + height + 40 + 18 * row
            parts.append(f'<rect x="{x0}" y="{y - 9}" width="18" height="4" fill="{colour}"/>')
            parts.append(f'<text x="{x0 + 26}" y="{y - 3}">{name}</text>')
    parts.append(
        f'<text x="{left}" y="{top + height + 30 + 18 * 6}" fill="#555555">steps after growth; held-out loss over the '
        "loss at growth, medians of five seeds</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Runs everything."""
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {name: [[] for _ in MARKS] for name in VARIANTS}
    for seed in range(SEEDS):
        for name, curve in curves(seed).items():
            for values, value in zip(found[name], curve, strict=True):
                values.append(value)
    losses = {
        name: [[round(f(values), 4) for f in (statistics.median, min, max)] for values in rows]
        for name, rows in found.items()
    }
    for name, rows in losses.items():
        print(f"{name:40}", "  ".join(f"{mark}: {row[0]:.3f}" for mark, row in zip(MARKS, rows, strict=True)))
    data: dict[str, Any] = {"torch": torch.__version__, "seeds": SEEDS, "steps before": STEPS_BEFORE}
    data |= {"marks": list(MARKS), "losses": losses}
    (HERE / "state_evidence.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (HERE / "optimizer-state.svg").write_text(picture(data), encoding="utf-8")


if __name__ == "__main__":
    main()
