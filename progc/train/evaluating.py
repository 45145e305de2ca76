"""Validation of a stage, with the trained weights and with averaged ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from progc.data.task import Task
from progc.data.validating import validate
from progc.lift.averages import Averages
from progc.train.parallel.base import Parallel
from progc.train.settings import Settings
from progc.train.stepping import autocast, samples_in


def evaluate(
    module: nn.Module,
    task: Task,
    inputs: Callable[[int], dict[str, torch.Tensor]],
    ema: Averages | None,
    parallel: Parallel,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """What `validate` says of the weights, and of each average under the same names with `ema-DECAY/` before them.

    The module is in train mode again behind it, its weights, buffers and all random numbers as they were. None where
    `stop` ended it.
    """

    def call(batch: Any) -> Any:
        with autocast(parallel.device, settings):
            return task.run(module, batch, **inputs(samples_in(batch)))

    def seen() -> dict[str, float] | None:
        return validate(
            call, task, batch=max(settings.batch // parallel.world, 1), rank=parallel.rank, world=parallel.world,
            mean=parallel.mean, device=parallel.device, stop=stop,
        )  # fmt: skip

    module.eval()
    try:
        with torch.no_grad():
            found = seen()
            for decay in ema.decays if ema is not None else ():
                assert ema is not None
                if found is None:
                    break
                with averaged(module, ema, decay):
                    own = seen()
                found = None if own is None else {**found, **{f"ema-{decay!r}/{name}": v for name, v in own.items()}}
    finally:
        module.train()
    return found


@contextlib.contextmanager
def averaged(module: nn.Module, ema: Averages, decay: float) -> Iterator[None]:
    """The module computes with averaged weights inside, and has its own again behind it."""
    own = module.state_dict(keep_vars=True)
    kept = {name: tensor.detach().clone() for name, tensor in own.items()}
    with torch.no_grad():
        for name, value in ema.tensors[decay].items():
            own[name].copy_(value)
        try:
            yield
        finally:
            for name, value in kept.items():
                own[name].copy_(value)
