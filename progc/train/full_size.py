"""Validates the network of a stage at the image size of the full network, as AutoProg does in every stage.

Stages with smaller images cannot be compared by their own validation, which has smaller images too. Here the network
keeps depth and width, and its tables of positions are resampled from the present weights or an averaged copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from progc.data.loading import validate
from progc.data.staged import for_stage, image_size
from progc.data.task import Task
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.passes.grow_resolution import GrowResolution
from progc.pipeline.manager import run
from progc.schedule.point import size_text
from progc.schedule.running import RunningStage, trained
from progc.train.parallel.base import Parallel
from progc.train.settings import Settings
from progc.train.stepping import autocast, samples_in

if TYPE_CHECKING:
    from progc.lift.lift import Lift

PREFIX = "full/"
"""Begins the names of metrics at the full image size."""


class FullSize:
    """The network of one stage at the full image size. It has no weights of its own, but for resampled tables."""

    def __init__(self, program: Program, lift: Lift | None, task: Task) -> None:
        """
        Args:
            program: the network.
            lift: makes its tensors from those of the stage.
            task: validation samples at that size.
        """
        self.task = task
        self._lift = lift
        self._shapes = {name: t.shape for name, t in program.tensors.items() if name not in program.tied}
        self._module = ProgramModule(program).eval()

    @classmethod
    def of(cls, running: RunningStage, task: Task, size: tuple[int, int] | None) -> FullSize | None:
        """Makes it for a stage, before its tensors are sharded; None if the stage has that size already.

        Args:
            running: the stage.
            task: task of the run.
            size: height and width of the full network's images; None if it takes none.
        """
        program = trained(running.program, running.module)
        if size is None or task.validation is None or image_size(program) == size:
            return None
        after, (result,) = run(program, [GrowResolution(to=(size_text(size),))], verify=False)
        return cls(after, result.lift, for_stage(task, running.stage.regularisation, after))

    def evaluate(
        self,
        running: RunningStage,
        module: nn.Module,
        parallel: Parallel,
        settings: Settings,
        stop: Callable[[], bool] = lambda: False,
        *,
        batch: int | None = None,
    ) -> dict[str, float] | None:
        """Validates the present weights and each averaged copy.

        Args:
            running: the stage.
            module: its module, whose tensors may be sharded.
            parallel: the processes that train together; all of them call this.
            settings: settings of the run.
            stop: asked before every batch; once it returns True, the result is None.
            batch: samples per call, over all ranks; None takes that of the settings.

        Returns:
            Metrics by name, such as `full/loss` and `full/ema-0.999/top1`.
        """
        live: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        live |= dict(module.named_buffers(remove_duplicate=False))
        ema = running.ema
        copies = {"": live} | {f"ema-{decay!r}/": live | ema.tensors[decay] for decay in (ema.decays if ema else ())}
        found: dict[str, float] = {}
        with torch.no_grad():
            for prefix, tensors in copies.items():
                own = self._seen(running, tensors, parallel, settings, stop, batch or settings.batch)
                if own is None:
                    return None
                found |= {f"{PREFIX}{prefix}{name}": value for name, value in own.items()}
        return found

    def _seen(
        self,
        running: RunningStage,
        tensors: Mapping[str, torch.Tensor],
        parallel: Parallel,
        settings: Settings,
        stop: Callable[[], bool],
        batch: int,
    ) -> dict[str, float] | None:
        whole = {name: _whole(tensor) for name, tensor in tensors.items()}
        made = whole if self._lift is None else self._lift.apply(whole)
        # What has another shape was made for this size and has no weights.
        values = {
            name: made[name] for name, shape in self._shapes.items() if name in made and made[name].shape == shape
        }

        def call(batch: Any) -> Any:
            args, kwargs = self.task.inputs(batch)
            with autocast(parallel.device, settings):
                more = running.inputs(samples_in(batch))
                return torch.func.functional_call(self._module, values, args, {**kwargs, **more})

        return validate(
            call, self.task, batch=max(batch // parallel.world, 1), rank=parallel.rank, world=parallel.world,
            mean=parallel.mean, device=parallel.device, stop=stop,
        )  # fmt: skip


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered from all ranks if it is sharded."""
    gather: Callable[[], torch.Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor.detach() if gather is None else gather().detach()
