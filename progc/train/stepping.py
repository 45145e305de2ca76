"""One optimizer step: micro-batches, mixed precision, clipping, and a guard that looks before anything changes."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.errors import CheckError
from progc.schedule.running import RunningStage
from progc.train.parallel.base import Parallel
from progc.train.progress import Meter
from progc.train.settings import Settings

if TYPE_CHECKING:
    from progc.emit.stage_module import StageModule

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


WINDOW = 50
"""Steps that a spike is compared with."""

LEAST = 10
"""Steps of the present stage without which nothing counts as a spike."""


class Guard:
    """Says which steps are left out, and when a run has to end.

    A step is left out if its loss or the norm of its gradient is not finite, or, with `spike`, if its loss is above the
    mean of the last `WINDOW` steps by that many standard deviations.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._skipped = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """None if the step may be taken, else why it is left out.

        Raises:
            CheckError: the run has to end: not finite where that is not to be skipped, or too many in a row.
        """
        reason = self._reason(loss, norm)
        if reason is None:
            self._recent.append(loss)
            self._skipped = 0
            return None
        if self.settings.nan == "stop" and not (math.isfinite(loss) and math.isfinite(norm)):
            raise CheckError(
                f"{reason}; weights are as before this step: lower the learning rate, or leave it out by nan=skip"
            )
        self._skipped += 1
        if self._skipped > self.settings.max_skipped:
            raise CheckError(
                f"{self._skipped} steps in a row were left out, the last because {reason}; lower the learning rate "
                "and go on from an earlier checkpoint"
            )
        return reason

    def _reason(self, loss: float, norm: float) -> str | None:
        for what, value in (("the loss", loss), ("the norm of the gradient", norm)):
            if not math.isfinite(value):
                return f"{what} is not finite ({value})"
        if self.settings.spike is None or len(self._recent) < LEAST:
            return None
        mean = math.fsum(self._recent) / len(self._recent)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self._recent) / len(self._recent))
        limit = mean + self.settings.spike * deviation
        return f"the loss {loss:.4g} is a spike above {limit:.4g}" if loss > limit else None

    def boundary(self) -> None:
        """Forgets recent losses: behind growth, or at another resolution, they are others without being spikes."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"recent": list(self._recent), "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self._recent = deque((float(value) for value in state["recent"]), maxlen=WINDOW)
        self._skipped = int(state["skipped"])


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


@dataclasses.dataclass
class Active:
    """One stage.

    Attributes:
        module: under the user's names, not wrapped.
        task: samples at the stage's size, with its regularisation.
        start, stop: optimizer steps between which it trains; with rules, where it ends if none says otherwise.
    """

    running: RunningStage
    module: StageModule
    task: Task
    stepper: Stepper
    meter: Meter
    start: int
    stop: int

    @property
    def index(self) -> int:
        """Of the stage."""
        return self.running.stage.index


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
