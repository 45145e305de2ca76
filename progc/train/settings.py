"""The settings of a run, and its learning rate as a function of progress.

Settings are plain values from a config file, flags or a call. The learning rate depends on the step only, so there is
no state to save.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

from torch.optim import Optimizer

from progc.errors import InputError

Amp = Literal["none", "bf16", "fp16"]
ParallelKind = Literal["auto", "none", "ddp", "fsdp"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one run; they are independent of models and passes.

    Attributes:
        batch: samples per optimizer step, over all ranks and micro-batches.
        stage_batch: `batch` of each stage; empty: as the stages of the schedule say, else `batch`. Learning rate and
            averages do not change with it.
        accumulate: micro-batches per step on each rank.
        total: length of the run in the unit of the schedule; None uses the length of the schedule.
        seed: seed of data order, random transforms and the global generators.
        lr: peak learning rate of parameter groups without their own.
        lr_schedule: `constant`, `linear`, `cosine`, `wsd` (constant, then linear over the last `decay` of the run) or
            `linear-to-zero`.
        decay: fraction of the run over which `wsd` decays; None: 0.2. Other schedules have none.
        stage_lr: factors on the learning rate, one per stage; empty: 1 in all.
        warmup: fraction of the run over which the learning rate rises from `warmup_floor`.
        warmup_floor: learning rate of the first step; 0 rises evenly from 0, which no step has.
        cooldown: epochs or steps, in the unit of the schedule, at the end of the run that train at `min_lr`.
        min_lr: learning rate at the end of the run, as a fraction of the peak.
        rewarm: steps over which the learning rate rises again from 0 after each boundary.
        clip: largest norm of all gradients together; None does not clip.
        amp: `none`, `bf16` or `fp16` (with a gradient scaler).
        ema: decays of the averaged copies; empty keeps no copies.
        compile: how stages are emitted: `regions`, `whole` or `eager`.
        recompute: activation checkpointing of blocks.
        ahead: compile the next stage in another process while the current one trains.
        parallel: `auto`, `none`, `ddp` or `fsdp`; `auto` is `ddp` with several ranks.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        workers: processes that load samples.
        tf32: whether a GPU multiplies f32 matrices and convolves in TF32; None leaves what torch is set to.
        cudnn_benchmark: whether cuDNN tries its algorithms for each new shape and takes the fastest.
        profile: steps of which a trace is written, as `START:STOP` (STOP is not included); None: no trace.
        validate_every: steps between validations; None validates at the end of each stage.
        validate_full: whether stages with smaller images are validated at the full image size as well.
        save_every: steps between checkpoints; None saves at boundaries and at the end only.
        keep: number of checkpoints to keep; None keeps all.
        save_in_background: whether training continues while a checkpoint is written.
        log_every: steps between lines of metrics.
        nan: on a loss or gradient that is not finite, `stop` ends the run (exit code 1), `skip` skips the step.
        max_skipped: number of steps skipped in a row after which the run ends.
        spike: skip steps whose loss is this many standard deviations above the recent mean; None skips none.
    """

    batch: int = 64
    stage_batch: tuple[int, ...] = ()
    accumulate: int = 1
    total: int | None = None
    seed: int = 0
    lr: float = 1e-3
    lr_schedule: str = "cosine"
    decay: float | None = None
    stage_lr: tuple[float, ...] = ()
    warmup: float = 0.05
    warmup_floor: float = 0.0
    cooldown: int = 0
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
    tf32: bool | None = None
    cudnn_benchmark: bool = False
    profile: str | None = None
    validate_every: int | None = None
    validate_full: bool = True
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
        for name in ("workers", "rewarm", "cooldown"):
            self._at_least(name, 0)
        for name in ("warmup", "min_lr"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name}: expected a fraction from 0 to 1, got {value!r}")
        for name in ("lr", "clip", "spike"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name}: expected a number above 0, got {value!r}")
        if not 0 <= self.warmup_floor <= self.lr:
            raise InputError(
                f"warmup_floor: expected a learning rate from 0 to lr, which is {self.lr:g}, got {self.warmup_floor!r}"
            )
        if self.cooldown and not self.min_lr:
            raise InputError("cooldown: min_lr is 0, so nothing would train; set min_lr to a fraction of the peak")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                words = f"{', '.join(known[:-1])} or {known[-1]}"
                raise InputError(f"{name}: expected {words}, got {getattr(self, name)!r}")
        self._check_schedule()
        if self.profile is not None:
            profiled(self.profile)
        for stage, value in enumerate(self.stage_batch):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"stage_batch: expected integers of at least 1, got {value!r} for stage {stage}")
        if self.accumulate > (smallest := min(self.stage_batch or (self.batch,))):
            raise InputError(
                f"accumulate: expected at most the batch size {smallest}, got {self.accumulate}; use a larger batch"
            )
        if (self.amp, self.parallel) == ("fp16", "fsdp"):
            raise InputError("amp: fp16 needs a gradient scaler, which parallel=fsdp does not have; use bf16 or ddp")

    def check_stages(self, number: int) -> None:
        """Checks that `stage_lr` and `stage_batch` have a value for each stage, or none.

        Raises:
            InputError: one of them has another number of values.
        """
        for name, what in (("stage_lr", "factor"), ("stage_batch", "batch size")):
            count = len(getattr(self, name))
            if count not in (0, number):
                raise InputError(
                    f"{name}: expected one {what} for each of the {number} stages, got {count}; give as many as the "
                    "plan has stages"
                )

    def _check_schedule(self) -> None:
        if self.decay is not None:
            if self.lr_schedule != "wsd":
                raise InputError(
                    f"decay: only the schedule wsd has it, and lr_schedule is {self.lr_schedule}; use wsd, or leave "
                    "out decay"
                )
            if not 0 < self.decay <= 1:
                raise InputError(f"decay: expected a fraction of the run above 0 and at most 1, got {self.decay!r}")
        if self.lr_schedule == "wsd" and self.warmup + (self.decay or DECAY) > 1:
            raise InputError(
                f"decay: warmup and decay take {self.warmup + (self.decay or DECAY):g} of the run together; give at "
                "most 1"
            )
        if self.lr_schedule == "linear-to-zero" and self.min_lr:
            raise InputError(
                f"min_lr: the schedule linear-to-zero ends at 0, got {self.min_lr:g}; use linear, or leave out min_lr"
            )
        for value in self.stage_lr:
            if not 0 < value < float("inf"):
                raise InputError(f"stage_lr: expected factors above 0, got {value!r}")

    def _at_least(self, name: str, least: int) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name}: expected an integer of at least {least}, got {value!r}")


DECAY = 0.2
"""Fraction of the run over which `wsd` decays by default."""
CHOICES = {
    "lr_schedule": ("constant", "linear", "cosine", "wsd", "linear-to-zero"),
    "amp": ("none", "bf16", "fp16"),
    "compile": ("regions", "whole", "eager"),
    "parallel": ("auto", "none", "ddp", "fsdp"),
    "nan": ("stop", "skip"),
}
"""Settings that take one of a few words, with these words."""


def profiled(text: str) -> tuple[int, int]:
    """Returns the first step of a trace and the one after the last, from a text such as `10:13`.

    Raises:
        InputError: the text is something else.
    """
    found = re.fullmatch(r"\s*(\d{1,12})\s*:\s*(\d{1,12})\s*", text, re.ASCII)
    start, stop = (int(found[1]), int(found[2])) if found is not None else (0, 0)
    if start >= stop:
        raise InputError(f"profile: expected START:STOP with START below STOP, such as 10:13, got {text!r}")
    return start, stop


def factor(
    settings: Settings, step: float, total: int, boundary: float = 0, stage: int = 0, stride: float = 1.0
) -> float:
    """Returns the factor on the peak learning rates for the next step, after `step` of `total` steps.

    The factor rises linearly over the first `warmup` of the run, from `warmup_floor` at the first step if that is set.
    Then it is constant, or falls linearly or as a cosine (Loshchilov and Hutter, SGDR, ICLR 2017) to `min_lr`, which
    the last step comes close to. `wsd` is constant, and falls linearly over the last `decay` of the run (Hu et al.,
    MiniCPM, 2024; linearly as in Hägele et al., NeurIPS 2024). `linear-to-zero` falls to 0 (Bergsma et al., ICLR 2025).
    Steps after the last one cool down at `min_lr`. After a boundary it rises again from 0 over `rewarm` steps to the
    value that it would have without the boundary. The factor of the stage (`stage_lr`) multiplies all of these.

    Where stages have batches of their own, steps may be given in any unit that is a fixed part of an epoch, such as the
    marks of `progc.schedule.pace.Pace`: the factor then depends on the part of the run that is done.

    Args:
        settings: settings of the run.
        step: optimizer steps done.
        total: optimizer steps of the run, without those that cool down.
        boundary: step at which the current stage began; 0 in the first stage.
        stage: index of the current stage.
        stride: length of the next step, in the unit of the other steps.
    """
    warm, floor = round(settings.warmup * total), settings.warmup_floor / settings.lr
    if step < warm:
        value = floor + (1.0 - floor) * step / warm if floor else min((step + stride) / warm, 1.0)
    elif step >= total:
        value = settings.min_lr
    else:
        progress = (step - warm) / max(total - warm, 1)
        decay = max(round((settings.decay or DECAY) * total), 1)
        shape = {
            "constant": 1.0,
            "wsd": min((total - step) / decay, 1.0),
            "linear-to-zero": 1.0 - progress,
            "linear": 1.0 - progress,
            "cosine": (1.0 + math.cos(math.pi * progress)) / 2,
        }[settings.lr_schedule]
        value = settings.min_lr + (1.0 - settings.min_lr) * shape
    since = round((step - boundary) / stride)
    if boundary > 0 and since < settings.rewarm:
        value *= (since + 1) / settings.rewarm
    return value * settings.stage_lr[stage] if settings.stage_lr else value


def set_rates(optimizer: Optimizer, value: float) -> None:
    """Sets the `lr` of every group to its peak times `value`; the peak is `initial_lr`, or `lr` at the first call."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * value
