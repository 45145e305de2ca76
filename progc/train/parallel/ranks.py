"""Training on several processes: what DDP and FSDP share, and DDP itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from progc.errors import InputError, first_of
from progc.ranks.agreeing import apart
from progc.train.parallel.base import TIMEOUT, Single

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.lift.averages import Averages


class Ranks(Single):
    """What DDP and FSDP share. See `Parallel`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._apart: Any = None

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """See `Parallel.mean`."""
        summed = value.clone()
        dist.all_reduce(summed)
        return summed / self.world

    def any(self, flag: bool) -> bool:
        """See `Parallel.any`."""
        largest = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return bool(largest.item())

    def asked(self, flag: bool) -> Callable[[], bool]:
        """See `Parallel.asked`.

        The message is on the CPU, in a group of its own: it neither waits for what the device computes nor stands in
        line with the reduction of gradients.
        """
        if self._apart is None:
            self._apart = apart(TIMEOUT)
        largest = torch.tensor(float(flag))
        work = dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._apart, async_op=True)

        def answer() -> bool:
            work.wait()
            return bool(largest.item())

        return answer


class Ddp(Ranks):
    """A whole copy on every rank, with averaged gradients: torch's DistributedDataParallel. See `Parallel`.

    Every rank takes the buffers of rank 0 after each step. DistributedDataParallel does so before each forward, which
    is too late for averages, validation and checkpoints in between.
    """

    name = "ddp"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._wrapped: DistributedDataParallel | None = None

    def wrap(self, module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """Returns a new wrapper; a wrapper kept from an earlier stage would not reduce layers that train only now."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            self._wrapped = None
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False,
            find_unused_parameters=getattr(module, "leaves_out", False),
        )  # fmt: skip
        return self._wrapped

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Drops the wrapper, and with it its hooks on the parameters."""
        self._wrapped = None

    @contextlib.contextmanager
    def reducing(self, last: bool) -> Iterator[Any]:
        """Averages gradients in the last micro-batch of a step only."""
        with contextlib.nullcontext() if last or self._wrapped is None else self._wrapped.no_sync():
            yield
        if last and self._wrapped is not None:
            _check_used(self._wrapped)
            same_buffers(self._wrapped.module)


def _check_used(wrapped: DistributedDataParallel) -> None:
    """Raises an error if parameters that train got no gradient; DistributedDataParallel would wait for it forever.

    Raises:
        InputError: there are such parameters; names some.
    """
    if wrapped.find_unused_parameters:
        return
    idle = [name for name, p in wrapped.module.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise InputError(
            f"the loss does not depend on {first_of(idle, 3)}, so several processes cannot train together; use "
            "these parameters in the loss, freeze them (requires_grad = False), or train in one process"
        )


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Gives every rank the persistent buffers of rank 0, such as running statistics, in one message per dtype.

    Every rank has seen other samples. Averaged copies, validation and checkpoints read the buffers after the step in
    which they changed.
    """
    own = {id(value) for value in module.state_dict(keep_vars=True).values()}
    kinds: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in module.buffers():
        if id(buffer) in own and buffer.numel():
            kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, 0)
        for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
