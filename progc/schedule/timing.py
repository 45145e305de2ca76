"""Measures the time of training steps (forward, loss, backward, optimizer) on real batches, on copies of programs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.analysis.costs.counting import NotCounted
from progc.data.task import Task
from progc.errors import InputError
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.ir.random_state import seeded

_BATCHES = 2
"""Number of different batches that are made; the steps use them in turn."""


def step_time(
    program: Program,
    task: Task,
    *,
    batch: int,
    seed: int = 0,
    warmup: int = 2,
    repeats: int = 5,
    device: str | torch.device | None = None,
    stage: int | None = None,
    learning: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measures the median seconds of one training step at the program's image size.

    A copy of all tensors is trained, with AdamW. Weights, buffers, gradients and random states of the program do not
    change.

    Args:
        program: the program, with its trainable set.
        task: samples and loss.
        batch: samples per step.
        seed: seed of the choice of samples and of dropout.
        warmup: steps before the first one that is timed.
        repeats: steps that are timed.
        device: where the steps run; None takes the device of the program's tensors.
        stage: the stage, for a program that takes it as an input; None takes the null row.
        learning: whether the optimizer's step is included, besides forward, loss and backward.
        clock: returns seconds. Use `time.process_time` on a CPU that is busy with other work.

    Returns:
        Seconds per step.

    Raises:
        InputError: too few samples, or a number out of range.
        NotCounted: nothing trains.
    """
    (found,) = step_times(
        [program], task, batch=batch, seed=seed, warmup=warmup, repeats=repeats, device=device,
        stages=[stage], learning=learning, clock=clock,
    )  # fmt: skip
    return found


def step_times(
    programs: Sequence[Program],
    task: Task,
    *,
    batch: int | Sequence[int],
    seed: int = 0,
    warmup: int = 2,
    repeats: int = 5,
    device: str | torch.device | None = None,
    stages: Sequence[int | None] | None = None,
    learning: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Measures the seconds of a step for several programs; arguments and errors as for `step_time`.

    The programs take steps in turn, so that other work on the machine affects all of them equally. Copies of all
    programs are in memory at the same time.

    Args:
        batch: samples per step, of all programs or of each.
        stages: the stage of each program, see `stage` of `step_time`.
    """
    sizes = list(batch) if isinstance(batch, Sequence) else [batch] * len(programs)
    for name, value, least in (*(("batch", size, 1) for size in sizes), ("warmup", warmup, 0), ("repeats", repeats, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: expected an integer of at least {least}, got {value!r}")
    chosen = [None] * len(programs) if stages is None else list(stages)
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        made = {
            size: list(task.batches(size, seed=seed, count=min(_BATCHES, max(len(task.samples) // size, 1))))
            for size in dict.fromkeys(sizes)
        }
        runs = [
            _TimedRun(program, task, made[size], device, stage, learning)
            for program, size, stage in zip(programs, sizes, chosen, strict=True)
        ]
        for _ in range(warmup):
            for run in runs:
                run.step()
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(repeats):
            for run, found in zip(runs, seconds, strict=True):
                synchronise(run.device)
                start = clock()
                run.step()
                synchronise(run.device)
                found.append(clock() - start)
    return [statistics.median(found) for found in seconds]


def synchronise(device: torch.device) -> None:
    """Waits until an accelerator has finished its work; does nothing on a CPU."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


class _TimedRun:
    """A copy of a program that trains."""

    def __init__(
        self,
        program: Program,
        task: Task,
        batches: Sequence[Any],
        device: str | torch.device | None,
        stage: int | None,
        learning: bool,
    ) -> None:
        module = ProgramModule(_copied(program)).train()
        here = next((tensor.device for tensor in program.tensors.values() if not tensor.is_meta), torch.device("cpu"))
        self.device = torch.device(device) if device is not None else here
        self._module, self._task = module.to(self.device), task
        fitted = [task.fitted(item, program) for item in batches]
        moved = [pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(self.device), item) for item in fitted]
        self._batches = itertools.cycle(moved)
        self._more = _stage_input(program, stage, moved[0], task)
        training = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not training:
            raise NotCounted("no parameter trains, so there is no step to measure")
        # A learning rate of zero takes the same time, and the loss cannot diverge.
        self._optimizer = torch.optim.AdamW(training, lr=0.0) if learning else None
        self._training = training

    def step(self) -> None:
        """Runs one step; checks that the loss is a scalar that can be differentiated."""
        batch = next(self._batches)
        loss = self._task.loss(self._task.run(self._module, batch, **self._more), batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError(
                "loss(outputs, batch): expected a scalar tensor that depends on the network's outputs; fix loss()"
            )
        loss.backward()
        if self._optimizer is not None:
            self._optimizer.step()
        for parameter in self._training:
            parameter.grad = None


def _copied(program: Program) -> Program:
    """The program over copies of its tensors; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    full = program.complete()
    for tensor in full.tensors.values():
        if id(tensor) not in made:
            fresh = tensor.detach().clone()
            same = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
            made[id(tensor)] = same
    return full.replace(tensors={name: made[id(tensor)] for name, tensor in full.tensors.items()}, averages=())


def _stage_input(program: Program, stage: int | None, batch: Any, task: Task) -> dict[str, Any]:
    """The keyword input for the stage, one index per sample, if the program has one and the task does not give it."""
    sid = program.sid
    call = task.inputs(batch)
    if sid is None or sid.input is None or sid.input in call[1]:
        return {}
    if stage is not None and not 0 <= stage <= sid.null:
        raise InputError(f"stage: expected a row of the stage identifier, 0 to {sid.null}, got {stage!r}")
    first = next(leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor) and leaf.dim())
    return {sid.input: torch.full((first.shape[0],), sid.null if stage is None else stage, device=first.device)}
