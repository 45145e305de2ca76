"""One optimizer step: micro-batches, mixed precision, clipping, and a guard that can skip the step."""

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
"""Number of recent steps that a loss is compared with."""

LEAST = 10
"""Number of steps of the current stage before a loss can count as a spike."""


class Guard:
    """Decides which steps are skipped, and when the run has to end.

    A step is skipped if its loss or the norm of its gradient is not finite, or, with `spike`, if its loss is that many
    standard deviations above the mean of the last `WINDOW` steps.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._skipped = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """Returns why a step is skipped; None if it may be taken.

        Raises:
            CheckError: a value is not finite and `nan` is `stop`, or too many steps in a row were skipped.
        """
        reason = self._reason(loss, norm)
        if reason is None:
            self._recent.append(loss)
            self._skipped = 0
            return None
        if self.settings.nan == "stop" and not (math.isfinite(loss) and math.isfinite(norm)):
            raise CheckError(
                f"{reason}; the weights were not changed: lower the learning rate, or skip such steps with nan=skip"
            )
        self._skipped += 1
        if self._skipped > self.settings.max_skipped:
            raise CheckError(
                f"{self._skipped} steps in a row were skipped, the last because {reason}; lower the learning rate "
                "and resume from an earlier checkpoint"
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
        """Forgets recent losses: after growth, or at another resolution, losses may differ without being spikes."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, JSON data."""
        return {"recent": list(self._recent), "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._recent = deque((float(value) for value in state["recent"]), maxlen=WINDOW)
        self._skipped = int(state["skipped"])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one step.

    Attributes:
        loss: mean loss over all samples of the step, over all ranks.
        norm: norm of all gradients together, before clipping.
        samples: number of samples, over all ranks.
        skipped: why the step was skipped; None if it was taken.
    """

    loss: float
    norm: float
    samples: int
    skipped: str | None = None


class Stepper:
    """Trains the module of one stage, step by step."""

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
            module: the wrapped module of the stage, in train mode.
            task: samples and loss.
            inputs: makes further keyword inputs from the number of samples, such as the stage identifier.
            optimizer: optimizer of the module.
            parallel: the processes that train together.
            scaler: gradient scaler; disabled unless training in fp16.
            guard: decides whether a step is taken.
            settings: settings of the run.
        """
        self.module, self.task, self.inputs, self.optimizer = module, task, inputs, optimizer
        self.parallel, self.scaler, self.guard, self.settings = parallel, scaler, guard, settings
        # Sorted by name, so that a norm is summed in one order whatever the network was grown from.
        self.trained = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
        # Frozen parameters must not keep a gradient: weight decay and momentum would keep moving them.
        for parameter in module.parameters():
            parameter.grad = None

    def step(self, micro_batches: Sequence[Any]) -> Outcome:
        """Runs forward and backward of every micro-batch, then updates the weights unless the guard skips the step.

        Raises:
            CheckError: the guard ends the run; weights and optimizer are unchanged.
        """
        sizes = [samples_in(batch) for batch in micro_batches]
        total = torch.zeros((), device=self.parallel.device)
        for number, (batch, size) in enumerate(zip(micro_batches, sizes, strict=True), 1):
            # Weighted by samples, since micro-batches may differ in size.
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
        # An fp16 scale that is too large gives a norm that is not finite: the scaler skips the step itself.
        scaling = self.scaler.is_enabled() and seen_loss == seen_loss and not _finite(seen_norm)
        skipped = "the gradient scale is halved" if scaling else self.guard.judge(seen_loss, seen_norm)
        if skipped is None or scaling:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(seen_loss, seen_norm, sum(sizes) * self.parallel.world, skipped)


@dataclasses.dataclass
class Active:
    """The stage that trains, with everything made for it.

    Attributes:
        running: the stage as `progc.stages` yields it.
        module: module under the names of the user's model, not wrapped.
        task: samples at the image size of the stage, with its regularisation.
        stepper: trains the module.
        meter: measures the speed.
        start, stop: optimizer steps between which the stage trains; with rules, `stop` applies if no rule ends it.
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
        """Index of the stage."""
        return self.running.stage.index


def autocast(device: torch.device, settings: Settings) -> torch.autocast:
    """Returns the autocast context for the `amp` setting."""
    dtype = AMP_DTYPES[settings.amp]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def samples_in(batch: Any) -> int:
    """Returns the number of samples in a batch: dim 0 of its first tensor."""
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.shape[0]
    return 1


def _finite(value: float) -> bool:
    return value - value == 0.0
