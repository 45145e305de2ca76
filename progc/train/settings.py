"""How a run trains: plain values, as a config file, flags or a call give them.

The learning rate as a function of progress: there is nothing to restore.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from torch.optim import Optimizer

from progc.errors import InputError

Amp = Literal["none", "bf16", "fp16"]
ParallelKind = Literal["auto", "none", "ddp", "fsdp"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Values of one run; none of them knows a model or a pass.

    Attributes:
        batch: samples per optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches per step on each rank.
        total: length of the run in the schedule's unit; None: the schedule's own.
        seed: of data order, random transforms and the global generators.
        lr: peak learning rate of groups that name none.
        lr_schedule: `constant`, `linear` or `cosine`, a function of progress alone.
        warmup: part of the run over which the rate rises from 0.
        min_lr: part of the peak that is left at the end.
        rewarm: steps over which the rate rises again, from 0, behind each boundary.
        clip: largest norm of all gradients together; None: not clipped.
        amp: `none`, `bf16` or `fp16` (with a gradient scaler).
        ema: decays of averaged copies; none: no copies.
        compile: how stages are emitted: `regions`, `whole` or `eager`.
        recompute: activation checkpointing of blocks.
        ahead: compile the next stage, in another process, while the present one trains.
        parallel: over ranks; `auto`: `ddp` where there are several.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        workers: processes that load samples.
        validate_every: steps between validations; None: at the end of each stage.
        save_every: steps between checkpoints; None: at boundaries and the end only.
        keep: checkpoints that stay; None: all.
        save_in_background: whether training goes on while a checkpoint is written.
        log_every: steps between lines of metrics.
        nan: a loss or gradient that is not finite: `stop` ends the run (exit 1), `skip` leaves the step out.
        max_skipped: steps left out in a row before the run ends.
        spike: a step whose loss is above the recent mean by this many standard deviations is left out; None: off.
    """

    batch: int = 64
    accumulate: int = 1
    total: int | None = None
    seed: int = 0
    lr: float = 1e-3
    lr_schedule: str = "cosine"
    warmup: float = 0.05
    min_lr: float = 0.0
    rewarm: int = 0
    clip: float | None = None
    amp: Amp = "none"
    ema: tuple[float, ...] = ()
    compile: Literal["regions", "whole", "eager"] = "regions"
    recompute: bool = False
    ahead: bool = True
    parallel: ParallelKind = "auto"
    device: str = "auto"
    workers: int = 0
    validate_every: int | None = None
    save_every: int | None = None
    keep: int | None = 3
    save_in_background: bool = True
    log_every: int = 10
    nan: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10
    spike: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "log_every", "max_skipped"):
            self._at_least(name, 1)
        for name in ("total", "validate_every", "save_every", "keep"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        for name in ("workers", "rewarm"):
            self._at_least(name, 0)
        for name in ("warmup", "min_lr"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is a part of the whole, from 0 to 1, not {value!r}")
        for name in ("lr", "clip", "spike"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is a number above 0, not {value!r}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {', '.join(known[:-1])} or {known[-1]}, not {getattr(self, name)!r}")
        if self.accumulate > self.batch:
            raise InputError(f"accumulate {self.accumulate}: a batch has {self.batch} samples; use a larger one")
        if (self.amp, self.parallel) == ("fp16", "fsdp"):
            raise InputError("amp=fp16 needs a gradient scaler, which parallel=fsdp does not have; use amp=bf16 or ddp")

    def _at_least(self, name: str, least: int) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} is a whole number from {least} on, not {value!r}")


CHOICES = {
    "lr_schedule": ("constant", "linear", "cosine"),
    "amp": ("none", "bf16", "fp16"),
    "compile": ("regions", "whole", "eager"),
    "parallel": ("auto", "none", "ddp", "fsdp"),
    "nan": ("stop", "skip"),
}
"""Settings that are one of some words."""


def factor(settings: Settings, step: int, total: int, boundary: int = 0) -> float:
    """What peak rates are multiplied by in the step that is taken when `step` of `total` steps are done.

    A linear rise over the first `warmup` of the run, then `constant`, `linear` or `cosine` (Loshchilov and Hutter,
    SGDR, 2017) down to `min_lr`, which the last step comes close to. Behind a boundary it rises again from 0 over
    `rewarm` steps to where it would be anyway.

    Args:
        boundary: step at which the present stage began; 0 in the first one.
    """
    warm = round(settings.warmup * total)
    if step < warm:
        value = (step + 1) / warm
    else:
        progress = (step - warm) / max(total - warm, 1)
        shape = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": (1.0 + math.cos(math.pi * progress)) / 2,
        }[settings.lr_schedule]
        value = settings.min_lr + (1.0 - settings.min_lr) * shape
    since = step - boundary
    if boundary > 0 and since < settings.rewarm:
        value *= (since + 1) / settings.rewarm
    return value


def set_rates(optimizer: Optimizer, value: float) -> None:
    """Every group's `lr` becomes its peak, `initial_lr`, times `value`; the peak is its `lr` where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * value
