"""Trains the digits network in three stages with a plain loop, from a small network to the full one.

    python examples/stages_loop.py --steps 300        about half a minute

`progc.stages` yields one stage after another; what happens between two of them (growth, the optimizer, averages, drop
rates) happens when the loop takes the next one. A stage ends early if its loss stops falling, and late while it still
falls.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits_vit import DigitsViT, example_inputs, load_digits, predict, shifted

import progc
from progc.schedule import ModelRef, Point, Schedule, Space, Stage
from progc.schedule.rules import Plateau


def plan(program: progc.Program, steps: int) -> Schedule:
    """Three stages of equal shares: a quarter of the blocks, half of them, all of them."""
    points = [Point({"blocks": depth}) for depth in (1, 2, 4)]
    return Schedule(
        ModelRef.of(program),
        "linear",
        tuple(Stage(k, point, 1 / len(points)) for k, point in enumerate(points)),
        Space(depths=tuple(point.depths for point in points)),
        total=steps,
        unit="steps",
        rules=(Plateau(window=20, threshold=0.02, smoothing=0.9),),
    )


def train(steps: int, batch: int = 64) -> tuple[DigitsViT, float]:
    """The network trained in stages, as its own class, and its accuracy on held-out digits."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = load_digits()
    model = DigitsViT(depth=4, width=64, heads=2)
    program = progc.capture(model, example_inputs())
    for stage in progc.stages(
        program,
        plan(program, steps),
        optimizer=lambda module: torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.05),
        ema=lambda module: progc.EMA(module, decays=(0.95,)),
    ):
        for _ in stage.steps:
            chosen = torch.randint(len(images), (batch,))
            loss = F.cross_entropy(stage.module(shifted(images[chosen])), labels[chosen])
            stage.optimizer.zero_grad()
            loss.backward()
            stage.optimizer.step()
            stage.ema.update(stage.module)
            stage.observe(loss=loss.item())
        assert stage.ended is not None
        print(
            f"stage {stage.stage.index}, {stage.stage.point}: {stage.program.num_parameters():,} parameters, "
            f"loss {loss.item():.3f}, ended at step {stage.ended.step}: {stage.ended.reason}",
            flush=True,
        )
    model.load_state_dict(stage.ema.tensors[0.95], strict=True)
    accuracy = (predict(model, test_images).argmax(1) == test_labels).float().mean().item()
    return model, accuracy


def main() -> None:
    """Trains and tells how well it went."""
    parser = argparse.ArgumentParser(description="Train a digits network in stages.")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of the whole run (default 300)")
    options = parser.parse_args()
    _, accuracy = train(options.steps)
    print(f"the averaged network is right on {accuracy:.1%} of the held-out digits")


if __name__ == "__main__":
    main()
