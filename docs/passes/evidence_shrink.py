"""Measures what the card of `shrink` states, and adds it to evidence.json. Run it after evidence.py.

    python docs/passes/evidence_shrink.py        some minutes on one core

A network (examples/digits_vit.py: depth 4, width 96, 6 heads) trains for 300 steps, is cut down in every way, and the
small one trains for 300 more with a fresh AdamW. Losses are those of the held-out images: `after shrinking` as a ratio
to the full network's, `after training` to a network of the small size that starts from its own initialisation and
trains for the same 300 steps. Medians of five seeds, smallest and largest beside them.
"""

from __future__ import annotations

import json
import statistics

import torch
from evidence import HERE, SEEDS, DigitsViT, held_out_loss, load_digits, train

import progc

STEPS = 300
SIZES = {"depth": (2, 96, 6), "width": (4, 48, 3), "both": (2, 48, 3)}
VARIANTS = {
    "shrink depth": ("depth", "shrink{depth=2}"),
    "shrink depth, first": ("depth", "shrink{depth=2 rule=first}"),
    "shrink depth, last": ("depth", "shrink{depth=2 rule=last}"),
    "shrink width, share": ("width", "shrink{width=48}"),
    "shrink width, copy": ("width", "shrink{width=48 storage=copy}"),
    "shrink width, copy, leading": ("width", "shrink{width=48 storage=copy units=leading}"),
    "shrink both, copy": ("both", "shrink{depth=2 width=48 storage=copy}"),
}


def main() -> None:
    """Runs everything."""
    torch.set_num_threads(1)
    train_x, train_y, test_x, test_y = load_digits()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        full = DigitsViT(depth=4, width=96, heads=6)
        train(full, train_x, train_y, STEPS, seed)
        before = held_out_loss(full, test_x, test_y)
        program = progc.capture(full, (test_x[:4],))
        afresh = {}
        for kind, sizes in SIZES.items():
            torch.manual_seed(seed + 1000)
            model = DigitsViT(*sizes)
            train(model, train_x, train_y, STEPS, seed + 100)
            afresh[kind] = held_out_loss(model, test_x, test_y)
        for name, (kind, pipeline) in VARIANTS.items():
            model = DigitsViT(*SIZES[kind])
            model.load_state_dict(progc.apply(program, pipeline).state_dict())
            own = found[name]
            own.setdefault("after shrinking", []).append(held_out_loss(model, test_x, test_y) / before)
            train(model, train_x, train_y, STEPS, seed + 100)
            own.setdefault("after training", []).append(held_out_loss(model, test_x, test_y) / afresh[kind])
    data = json.loads((HERE / "evidence.json").read_text(encoding="utf-8"))
    for name, figures in found.items():
        data["ratios"][name] = {}
        for what, values in figures.items():
            figure = [round(f(values), 4) for f in (statistics.median, min, max)]
            data["ratios"][name][what] = figure
            print(f"{name:28}  {what:16}  {figure[0]:9.4f}  ({figure[1]:.4f} to {figure[2]:.4f})", flush=True)
    (HERE / "evidence.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
