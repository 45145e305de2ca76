"""One optimizer step: micro-batches, mixed precision, clipping, and a guard that can skip the step.

The host starts the work of a step and reads its values later: see `Stepper`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.errors import CheckError
from progc.schedule.running import RunningStage
from progc.train.buffers import StepBuffers
from progc.train.parallel.base import Parallel
from progc.train.progress import Meter
from progc.train.settings import Settings
from progc.train.skipping import can_skip, step_unless

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


WINDOW = 50
"""Number of recent steps that a loss is compared with."""

LEAST = 10
"""Number of steps of the current stage before a loss can count as a spike."""

LONGEST = 50
"""Number of steps after which the host reads the values of steps at the latest, so that a failed run ends soon."""


class Guard:
    """Decides which steps are skipped, and when the run has to end.

    A step is skipped if its loss or the norm of its gradient is not finite, or, with `spike`, if its loss is that many
    standard deviations above the mean of the last `WINDOW` steps.

    Attributes:
        in_a_row: number of steps that were skipped since the last one that was taken.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.in_a_row = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """Returns why a step is skipped; None if it may be taken.

        Raises:
            CheckError: a value is not finite and `nan` is `stop`, or too many steps in a row were skipped.
        """
        reason = self._reason(loss, norm)
        if reason is None:
            self._recent.append(loss)
            self.in_a_row = 0
            return None
        if self.settings.nan == "stop" and not (math.isfinite(loss) and math.isfinite(norm)):
            raise CheckError(
                f"{reason}; the weights were not changed: resume with train.nan=skip to leave out such steps, or "
                "start a run with a lower train.lr in another folder"
            )
        self.in_a_row += 1
        if self.in_a_row > self.settings.max_skipped:
            raise CheckError(
                f"{self.in_a_row} steps in a row were skipped, the last because {reason}; start a run with a lower "
                "train.lr in another folder, or resume with a larger train.max_skipped"
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
        return {"recent": list(self._recent), "skipped": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._recent = deque((float(value) for value in state["recent"]), maxlen=WINDOW)
        self.in_a_row = int(state["skipped"])


class Outcome:
    """The result of one step; loss, norm and decision stay on the device until one of them is read.

    Attributes:
        samples: number of samples, over all ranks.
        left_out: 1 if the step was skipped, else 0: f32, 0-d, on the device. None if the host has decided.
    """

    def __init__(self, stepper: Stepper, seen: torch.Tensor, samples: int, left_out: torch.Tensor | None) -> None:
        self.samples, self.left_out = samples, left_out
        self._stepper, self.seen = stepper, seen
        self.found: tuple[float, float] | None = None
        self.judged = False
        self._skipped: str | None = None

    @property
    def loss(self) -> float:
        """Mean loss over all samples of the step, over all ranks."""
        return self._read()[0]

    @property
    def norm(self) -> float:
        """Norm of all gradients together, before clipping."""
        return self._read()[1]

    @property
    def skipped(self) -> str | None:
        """Why the step was skipped; None if it was taken."""
        self._read()
        return self._skipped

    def judge(self, reason: str | None) -> None:
        """Sets why the step was skipped."""
        self.judged, self._skipped = True, reason

    def _read(self) -> tuple[float, float]:
        if not self.judged:
            self._stepper.read(self)
        assert self.found is not None
        return self.found


class Stepper:
    """Trains the module of one stage, step by step.

    Where the optimizer can skip a step on the device (`progc.train.skipping`), a step does not wait for the device. A
    flag on the device decides what the guard decides later on the host, from the same two numbers: whether loss and
    norm are finite. With `nan=stop` the flag stays set, so that nothing changes until the host has seen it. A spike is
    found by a computation on the host, so runs that look for spikes wait in every step.

    Attributes:
        waiting: steps that the guard has not judged on the host.
    """

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
        buffers: Iterable[torch.Tensor] | None = None,
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
            buffers: buffers of the module that a step may change; None takes all of them.
        """
        self.module, self.task, self.inputs, self.optimizer = module, task, inputs, optimizer
        self.parallel, self.scaler, self.guard, self.settings = parallel, scaler, guard, settings
        # Sorted by name, so that a norm is summed in one order whatever the network was grown from.
        self.trained = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
        # Frozen parameters must not keep a gradient: weight decay and momentum would keep moving them.
        for parameter in module.parameters():
            parameter.grad = None
        self.buffers = StepBuffers(module.buffers() if buffers is None else buffers)
        self.waiting: deque[Outcome] = deque()
        self._defers = settings.spike is None and can_skip(optimizer)
        self._ending: torch.Tensor | None = None

    def step(self, micro_batches: Sequence[Any]) -> Outcome:
        """Runs forward and backward of every micro-batch, then updates the weights unless the guard skips the step.

        Raises:
            CheckError: the guard ends the run, because of this step or of one that was waiting; weights, buffers and
                optimizer are as they were before that step.
        """
        if self.full:
            self.read()
        self.buffers.keep()
        sizes = [samples_in(batch) for batch in micro_batches]
        total = torch.zeros((), device=self.parallel.device)
        for number, (batch, size) in enumerate(zip(micro_batches, sizes, strict=True), 1):
            with self.parallel.reducing(number == len(sizes)):
                with autocast(self.parallel.device, self.settings):
                    outputs = self.task.run(self.module, batch, **self.inputs(size))
                    loss = self.task.loss(outputs, batch)
                    if len(sizes) > 1:  # weighted by samples, since micro-batches may differ in size
                        loss = loss * (size / sum(sizes))
                self.scaler.scale(loss).backward()
            total += loss.detach().float()
        self.scaler.unscale_(self.optimizer)
        norm = self.parallel.clip(self.trained, self.settings.clip)
        seen = torch.stack([self.parallel.mean(total), norm.to(total)])
        left_out = self._left_out(seen) if self._defers else None
        outcome = Outcome(self, seen, sum(sizes) * self.parallel.world, left_out)
        self.waiting.append(outcome)
        if left_out is not None:
            step_unless(self.optimizer, left_out)
            self.buffers.restore(left_out)
        elif self._taken(outcome):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _taken(self, outcome: Outcome) -> bool:
        """Whether the host takes the step; buffers are put back if it does not, also where the guard ends the run."""
        taken = False
        try:
            taken = outcome.skipped is None
        finally:
            if not taken:
                self.buffers.restore()
        return taken

    @property
    def full(self) -> bool:
        """Whether the host has to read the waiting steps before it takes another one.

        After `LONGEST` steps, so that a run that has to end does so soon; and before a step that would follow one with
        which the guard ends the run for skipping too many.
        """
        left = self.settings.max_skipped + 1 - self.guard.in_a_row if self.settings.nan == "skip" else LONGEST
        return len(self.waiting) >= min(LONGEST, left)

    def read(self, last: Outcome | None = None) -> None:
        """Reads the values of all waiting steps, which waits for the device, and lets the guard judge them in order.

        Args:
            last: the last step to judge; None judges all.

        Raises:
            CheckError: the guard ends the run.
        """
        new = [outcome for outcome in self.waiting if outcome.found is None]
        if new:
            for outcome, values in zip(new, torch.stack([o.seen for o in new]).tolist(), strict=True):
                outcome.found = values[0], values[1]
        while self.waiting and (last is None or not last.judged):
            outcome = self.waiting.popleft()
            assert outcome.found is not None
            outcome.judge(self._reason(*outcome.found))

    def _reason(self, loss: float, norm: float) -> str | None:
        # An fp16 scale that is too large gives a norm that is not finite: halving the scale is all that is needed.
        if self.scaler.is_enabled() and loss == loss and not math.isfinite(norm):
            return "the gradient scale is halved"
        return self.guard.judge(loss, norm)

    def _left_out(self, seen: torch.Tensor) -> torch.Tensor:
        """The flag of this step, from loss and norm `[2]`: what `_reason` decides from the same values."""
        odd = seen * 0 != 0  # 0 times infinity is not a number
        left_out = odd.any()
        if self.settings.nan == "stop":
            ending = left_out
            if self.scaler.is_enabled():
                ending = left_out & ~((seen[0] == seen[0]) & odd[1])
            self._ending = ending if self._ending is None else self._ending | ending
            left_out = left_out | self._ending
        return left_out.float()


@dataclasses.dataclass
class Active:
    """The stage that trains, with everything made for it.

    Attributes:
        running: the stage as `progc.stages` yields it.
        module: module under the names of the user's model, not wrapped.
        task: samples at the image size of the stage, with its regularisation.
        loading: the task whose samples are loaded; in a search, images that are as large as the largest candidate's.
        candidates: in a search, the task of each sub-network, at its own image size.
        stepper: trains the module.
        meter: measures the speed.
        start, stop: optimizer steps between which the stage trains; with rules, `stop` applies if no rule ends it.
    """

    running: RunningStage
    module: nn.Module
    task: Task
    stepper: Stepper
    meter: Meter
    start: int
    stop: int
    loading: Task
    candidates: tuple[Task, ...] = ()

    @property
    def index(self) -> int:
        """Index of the stage."""
        return self.running.stage.index


def autocast(device: torch.device, settings: Settings) -> contextlib.AbstractContextManager[Any]:
    """Returns the autocast context for the `amp` setting."""
    dtype = AMP_DTYPES[settings.amp]
    if dtype is None and not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()  # takes less time than a context that turns off what is off
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def samples_in(batch: Any) -> int:
    """Returns the number of samples in a batch: dim 0 of its first tensor."""
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else None
    for leaf in [first] if isinstance(first, torch.Tensor) and first.dim() else pytree.tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.shape[0]
    return 1
