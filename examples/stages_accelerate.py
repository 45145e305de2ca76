"""Trains the digits network in stages with Hugging Face accelerate, on one process or on several.

    pip install 'progc[accelerate,demo]'
    python examples/stages_accelerate.py
    accelerate launch --multi_gpu --num_processes 2 examples/stages_accelerate.py
    torchrun --nproc-per-node 2 examples/stages_accelerate.py       also without a GPU, where accelerate starts only one

Each stage has its own module, so accelerate prepares everything again where a stage begins and releases it where
the stage ends; the optimizer and the averaged copy are the same ones throughout. Every process grows the network
itself, from the same weights and the same seed: the hash at the end shows that all of them hold the same network.
"""

from __future__ import annotations

import argparse
import copy
import hashlib

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits_vit import DigitsViT, example_inputs, load_digits, predict
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import progc


def main(epochs: int, stages: int, batch: int) -> None:
    """Trains, and prints what each stage came to.

    Args:
        batch: samples of a micro-batch, of which two on each process make a step.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    torch.manual_seed(0)
    images, labels, test_images, test_labels = load_digits()
    samples = TensorDataset(images, labels)
    program = progc.capture(DigitsViT(depth=4, width=32, heads=2), example_inputs())
    before = None
    for stage in progc.stages(
        program,
        progc.plan(program, strategy="linear", stages=stages, resolutions="none", total=epochs),
        # Made of a module that is where it trains, so that its state and the averages are there too.
        optimizer=lambda module: torch.optim.AdamW(module.to(accelerator.device).parameters(), lr=3e-3),
        ema=lambda module: progc.EMA(module, decays=(0.95,)),
    ):
        stage.module.to(accelerator.device)
        after = outputs(stage.module, test_images[:32])
        if before is not None:
            accelerator.print(f"  boundary: outputs differ by {(after - before).abs().max().item():.1e} in float64")
        loader = DataLoader(samples, batch_size=batch, shuffle=True)
        # Anew for each stage: a wrapper for several processes knows only the parameters that it was made with.
        model, optimizer, loader = accelerator.prepare(stage.module, stage.optimizer, loader)
        for _ in stage.steps:
            for x, y in loader:
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    stage.ema.update(stage.module)
        before = outputs(stage.module, test_images[:32])
        right = predict(stage.module, test_images.to(accelerator.device)).argmax(1).cpu() == test_labels
        accelerator.print(
            f"stage {stage.stage.index}, {stage.stage.point}: {stage.program.num_parameters():,} parameters, "
            f"accuracy {right.float().mean().item():.1%}"
        )
        # The wrappers go; what they wrapped stays, and the network grows out of it.
        model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    print(f"rank {accelerator.process_index} of {accelerator.num_processes}: {digest(stage)}", flush=True)
    accelerator.end_training()


def outputs(module: nn.Module, images: Tensor) -> Tensor:
    """What a copy of a network in float64 gives in eval mode, on the CPU."""
    return predict(copy.deepcopy(module).cpu().double(), images.double())


def digest(stage: progc.RunningStage) -> str:
    """A hash of all that was trained: weights, averages and the optimizer's state."""
    states = [stage.optimizer.state[parameter] for _, parameter in sorted(stage.module.named_parameters())]
    moments = [value for state in states for _, value in sorted(state.items())]
    found = hashlib.sha256()
    for tensor in (*stage.module.state_dict().values(), *stage.ema.state_dict().values(), *moments):
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a digits network in stages with accelerate.")
    parser.add_argument("--epochs", type=int, default=24, help="passes over the digits of the whole run (default 24)")
    parser.add_argument("--stages", type=int, default=4, help="default 4")
    parser.add_argument("--batch", type=int, default=32, help="samples of a micro-batch on each process (default 32)")
    options = parser.parse_args()
    main(options.epochs, options.stages, options.batch)
