"""One optimizer step: micro-batches, mixed precision, clipping, and a guard that looks before anything changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.train.guards import Guard
from progc.train.parallel.base import Parallel
from progc.train.settings import Settings

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one step saw.

    Attributes:
        loss: mean over all samples of the step, over all ranks.
        norm: of all gradients together, before clipping.
        samples: on all ranks.
        skipped: why nothing was changed; None where the step was taken.
    """

    loss: float
    norm: float
    samples: int
    skipped: str | None = None


class Stepper:
    """Trains one stage's module, step by step."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        inputs: Callable[[int], dict[str, torch.Tensor]],
        optimizer: Optimizer,
        parallel: Parallel,
        scaler: torch.amp.GradScaler,
        guard: Guard,
        settings: Settings,
    ) -> None:
        """
        Args:
            module: what is called; in train mode.
            inputs: number of samples to further keyword inputs, such as the stage.
        """
        self.module, self.task, self.inputs, self.optimizer = module, task, inputs, optimizer
        self.parallel, self.scaler, self.guard, self.settings = parallel, scaler, guard, settings
        # By name, so that a norm is summed up in one order whatever the network grew out of.
        self.trained = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
        # What is frozen must not keep a gradient: weight decay and momentum would go on moving it.
        for parameter in module.parameters():
            parameter.grad = None

    def step(self, micro_batches: Sequence[Any]) -> Outcome:
        """Forward and backward of every micro-batch, then one update of the weights unless the guard objects.

        Raises:
            CheckError: the guard says that the run must end; weights and optimizer are untouched.
        """
        sizes = [samples_in(batch) for batch in micro_batches]
        total = torch.zeros((), device=self.parallel.device)
        for number, (batch, size) in enumerate(zip(micro_batches, sizes, strict=True), 1):
            # Weighted by samples: micro-batches need not be equally large.
            weight = size / sum(sizes)
            with self.parallel.reducing(number == len(sizes)):
                with autocast(self.parallel.device, self.settings):
                    outputs = self.task.run(self.module, batch, **self.inputs(size))
                    loss = self.task.loss(outputs, batch) * weight
                self.scaler.scale(loss).backward()
            total += loss.detach().float()
        self.scaler.unscale_(self.optimizer)
        norm = self.parallel.clip(self.trained, self.settings.clip)
        seen_loss, seen_norm = torch.stack([self.parallel.mean(total), norm.to(total)]).tolist()
        # An fp16 scale that was too large shows as a norm that is not finite: the scaler leaves the step out itself.
        scaling = self.scaler.is_enabled() and seen_loss == seen_loss and not _finite(seen_norm)
        skipped = "the gradient scale is halved" if scaling else self.guard.judge(seen_loss, seen_norm)
        if skipped is None or scaling:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(seen_loss, seen_norm, sum(sizes) * self.parallel.world, skipped)


def autocast(device: torch.device, settings: Settings) -> torch.autocast:
    """Mixed precision as the settings have it."""
    dtype = AMP_DTYPES[settings.amp]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def samples_in(batch: Any) -> int:
    """Samples of a batch: dim 0 of its first tensor."""
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.shape[0]
    return 1


def _finite(value: float) -> bool:
    return value - value == 0.0
