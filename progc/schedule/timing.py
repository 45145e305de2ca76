"""Measured training steps: forward, loss, backward, optimizer, on real batches; nothing of the program changes."""

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
"""Different batches that are made; steps take them in turns."""


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
    """Median seconds of one training step at the program's image size.

    It trains a copy of all tensors, with AdamW; weights, buffers, gradients and random states stay as they are.

    Args:
        program: its trainable set trains.
        task: gives samples and loss.
        batch: samples per step.
        seed: of the choice of samples and of dropout.
        warmup: steps before the first that counts.
        repeats: steps that count.
        device: where it runs; None: where the program's tensors are.
        stage: for a program with a stage input: the stage; None: the null row.
        learning: with the optimizer's step; otherwise forward, loss and backward alone.
        clock: seconds; `time.process_time` on a CPU that is busy with other work.

    Raises:
        InputError: too few samples, or numbers that are none.
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
    batch: int,
    seed: int = 0,
    warmup: int = 2,
    repeats: int = 5,
    device: str | torch.device | None = None,
    stages: Sequence[int | None] | None = None,
    learning: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """As `step_time` for several programs, a step of each in turns, so that other work on the machine hits all alike.

    Copies of all programs are in memory at once.
    """
    for name, value, least in (("batch", batch, 1), ("warmup", warmup, 0), ("repeats", repeats, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is a whole number from {least} on, not {value!r}")
    chosen = [None] * len(programs) if stages is None else list(stages)
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        count = min(_BATCHES, max(len(task.samples) // batch, 1))
        batches = list(task.batches(batch, seed=seed, count=count))
        runs = [
            _TimedRun(program, task, batches, device, stage, learning)
            for program, stage in zip(programs, chosen, strict=True)
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
    """Waits for an accelerator to be done with what it was given; a CPU is."""
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
        # A rate of zero: times are the same, and no number of steps can make the loss infinite.
        self._optimizer = torch.optim.AdamW(training, lr=0.0) if learning else None
        self._training = training

    def step(self) -> None:
        """One step; checks that the loss is a number that a gradient can be taken of."""
        batch = next(self._batches)
        loss = self._task.loss(self._task.run(self._module, batch, **self._more), batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError("the loss is a scalar tensor that depends on the network's outputs; mend loss()")
        loss.backward()
        if self._optimizer is not None:
            self._optimizer.step()
        for parameter in self._training:
            parameter.grad = None


def _copied(program: Program) -> Program:
    """Over tensors of its own; tied ones stay tied."""
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
        raise InputError(f"stage is a row of the stage identifier, 0 to {sid.null}, not {stage!r}")
    first = next(leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor) and leaf.dim())
    return {sid.input: torch.full((first.shape[0],), sid.null if stage is None else stage, device=first.device)}
