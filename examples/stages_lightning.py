"""Trains the digits network in stages with Lightning: one Trainer, one `fit` for each stage.

    pip install 'progc[lightning,demo]'
    python examples/stages_lightning.py

Each stage has its own module, so each gets its own LightningModule; the optimizer and the averaged copy are the same
ones throughout. The Trainer stays too: `fit` wraps the module again and continues at the epoch and the global step
that it had reached.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from digits_vit import DigitsViT, example_inputs, load_digits, predict
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import progc


class StageModule(lightning.LightningModule):
    """One stage of the run: its network, and the optimizer that goes along."""

    def __init__(self, stage: progc.RunningStage) -> None:
        super().__init__()
        self.stage, self.network = stage, stage.module

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss of a batch [images, labels]."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the weights, then one of their average."""
        super().optimizer_step(*args, **kwargs)
        self.stage.ema.update(self.network)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of all stages, which holds this one's parameters by now."""
        return self.stage.optimizer


def main(epochs: int, stages: int, batch: int) -> None:
    """Trains, and prints what each stage came to."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = load_digits()
    program = progc.capture(DigitsViT(depth=4, width=32, heads=2), example_inputs())
    schedule = progc.plan(program, strategy="linear", stages=stages, resolutions="none", total=epochs)
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = None
    for stage in progc.stages(
        program,
        schedule,
        optimizer=lambda module: torch.optim.AdamW(module.parameters(), lr=3e-3),
        ema=lambda module: progc.EMA(module, decays=(0.95,)),
    ):
        after = outputs(stage.module, test_images[:32])
        if before is not None:
            print(f"  boundary: outputs differ by {(after - before).abs().max().item():.1e} in float64")
        # Epochs are counted over the whole run, by the schedule as by the Trainer.
        trainer.fit_loop.max_epochs = stage.stop
        trainer.fit(StageModule(stage), loader)
        before = outputs(stage.module, test_images[:32])
        accuracy = (predict(stage.module, test_images).argmax(1) == test_labels).float().mean().item()
        print(
            f"stage {stage.stage.index}, {stage.stage.point}: {stage.program.num_parameters():,} parameters, "
            f"epoch {trainer.current_epoch}, step {trainer.global_step}, accuracy {accuracy:.1%}",
            flush=True,
        )
    model = DigitsViT(depth=4, width=32, heads=2)
    model.load_state_dict(stage.ema.tensors[0.95], strict=True)
    accuracy = (predict(model, test_images).argmax(1) == test_labels).float().mean().item()
    print(f"the averaged network is right on {accuracy:.1%} of the held-out digits")


def outputs(module: nn.Module, images: Tensor) -> Tensor:
    """What a copy of a network in float64 gives in eval mode."""
    return predict(copy.deepcopy(module).double(), images.double())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a digits network in stages with Lightning.")
    parser.add_argument("--epochs", type=int, default=24, help="passes over the digits of the whole run (default 24)")
    parser.add_argument("--stages", type=int, default=4, help="default 4")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step (default 64)")
    options = parser.parse_args()
    main(options.epochs, options.stages, options.batch)
