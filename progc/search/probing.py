"""Measures one candidate of a zero-shot search: checks its losses, computes its proxies, and times its step."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.errors import CheckError, InputError
from progc.ir.deferred import device_of, is_deferred
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.ir.random_state import seeded

if TYPE_CHECKING:
    from progc.search.proxies.base import Proxy

TIMED = 6
"""Number of batches over which AutoProg-Zero averages the time of a step; they follow those of the proxies."""

PER_PROXY = 2
"""Number of batches that AutoProg-Zero gives to a proxy."""


@dataclasses.dataclass(frozen=True)
class ProbeBatches:
    """The batches of a search, on the device of the network, at the full image size.

    Attributes:
        proxies: batches of each proxy, by name.
        timed: batches for the time of a step as AutoProg-Zero measures it; empty if it is not measured.
    """

    proxies: Mapping[str, Sequence[Any]]
    timed: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the batches, each of them once, in the order in which they were drawn."""
        seen: dict[int, Any] = {id(batch): batch for own in self.proxies.values() for batch in own}
        yield from ({**seen, **{id(batch): batch for batch in self.timed}}).values()


def draw(
    task: Task, full: Program, names: Sequence[str], *, mode: str, samples: int, count: int, seed: int, timed: bool
) -> ProbeBatches:
    """Draws the batches of a search.

    By default all proxies get the same shuffled batches. In `reference` they are the first ones of the data, in its
    order: two for each proxy, followed by six for the time.

    Args:
        names: names of the proxies.
        mode: `default` or `reference`.
        samples: samples per batch; for a network with a fixed batch size that size, with more or fewer batches.
        count: number of batches in `default`.
        seed: seed of the shuffling.
        timed: whether batches for the time are drawn (`reference`).

    Raises:
        InputError: there are not enough samples.
    """
    if not any(full.signature.batch_dims):
        own = next((shape[0] for shape in full.signature.shapes if shape), samples)
        count, samples = -(-count * samples // own), own
    device = next((device_of(tensor) for _, tensor in full.parameters()), torch.device("cpu"))

    def there(batch: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(device), batch)

    if mode != "reference":
        shuffled = [there(batch) for batch in task.batches(samples, seed=seed, count=count)]
        return ProbeBatches(dict.fromkeys(names, shuffled))
    in_order = dataclasses.replace(task, validation=task.samples)
    wanted = PER_PROXY * len(names) + (TIMED if timed else 0)
    found = [there(batch) for batch in in_order.batches(samples, seed=seed, count=wanted, validation=True)]
    own_batches = {name: found[PER_PROXY * place : PER_PROXY * (place + 1)] for place, name in enumerate(names)}
    return ProbeBatches(own_batches, found[PER_PROXY * len(names) :])


def proxies_of(names: Sequence[str], mode: str) -> dict[str, Proxy]:
    """Makes the proxies of these names; those with an option `mode` get the mode.

    Raises:
        InputError: there is no such proxy.
    """
    from progc.search.proxies import load_proxy

    found: dict[str, Proxy] = {}
    for name in names:
        kind: Any = load_proxy(name)
        known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
        found[name] = kind(mode=mode) if "mode" in known else kind()
    return found


def scores(
    program: Program,
    proxies: Mapping[str, Proxy],
    batches: ProbeBatches,
    task: Task,
    *,
    seed: int,
    stage: int | None,
    where: str,
) -> dict[str, float]:
    """Returns scores by name, higher is better; NaN if a proxy could not be computed.

    Args:
        stage: row of the stage identifier in this stage.
        where: stage and candidate, for error messages.

    Raises:
        CheckError: the loss is NaN or infinite.
    """
    check_losses(program, list(batches), task, seed=seed, stage=stage, where=where)
    found: dict[str, float] = {}
    for name, proxy in proxies.items():
        score = float(proxy.score(program, batches.proxies[name], task, seed=seed, stage=stage))
        found[name] = score if proxy.higher_is_better else -score
    return found


def check_losses(
    program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None, where: str
) -> None:
    """Checks the loss of a program on each batch, in train mode.

    Raises:
        CheckError: a loss is NaN or infinite; the message gives the batch.
        InputError: the loss is not a scalar tensor.
    """
    loss_of = losses(program, task, stage)
    with seeded(seed), torch.no_grad():
        for number, batch in enumerate(batches, 1):
            loss = loss_of(batch)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                raise InputError(
                    f"{where}: loss(outputs, batch): expected a scalar tensor, got {_what(loss)}; fix loss()"
                )
            if not math.isfinite(float(loss)):
                raise CheckError(
                    f"{where}: the loss is {float(loss):g} on batch {number} of {len(batches)}; "
                    "check the weights and these samples"
                )


def losses(program: Program, task: Task, stage: int | None) -> Callable[[Any], torch.Tensor]:
    """Returns the loss of a program in train mode as a function of a batch; the program's buffers do not change."""
    own = {
        name: tensor.clone() if program.specs[name].kind == "buffer" else tensor
        for name, tensor in program.tensors.items()
    }
    module = ProgramModule(program.replace(tensors=own, averages=())).train()

    def loss_of(batch: Any) -> torch.Tensor:
        fitted = task.fitted(batch, program)
        return task.loss(task.run(module, fitted, **_stage_input(program, task, fitted, stage)), fitted)

    return loss_of


def published_time(
    program: Program, batches: Sequence[Any], task: Task, stage: int | None, clock: Callable[[], float] | None = None
) -> float:
    """Measures the mean seconds of forward, loss and backward as AutoProg-Zero's code does.

    There is no warm-up, no optimizer step, and no synchronisation with the device.

    Args:
        clock: returns seconds; None takes the wall clock.
    """
    clock = clock or time.perf_counter
    loss_of = losses(program, task, stage)
    training = [tensor for _, tensor in program.parameters() if tensor.requires_grad]
    seconds: list[float] = []
    for batch in batches:
        fitted = task.fitted(batch, program)
        start = clock()
        torch.autograd.grad(loss_of(fitted), training, allow_unused=True)
        seconds.append(clock() - start)
    return statistics.fmean(seconds)


def check_weights(full: Program) -> None:
    """Checks that the weights of a program are in memory.

    Raises:
        InputError: the program has shapes only.
    """
    if any(tensor.is_meta and not is_deferred(tensor) for tensor in full.tensors.values()):
        raise InputError(
            "zero-shot search scores the weights, and the weights of this network are not in memory; load the network "
            "with its weights, or use the strategy linear"
        )


def _stage_input(program: Program, task: Task, batch: Any, stage: int | None) -> dict[str, torch.Tensor]:
    """The stage `[samples]` for a network that takes it as an input, unless the task gives it."""
    sid = program.sid
    args, kwargs = task.inputs(batch)
    if sid is None or sid.input is None or sid.input in kwargs:
        return {}
    first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    return {sid.input: torch.full(first.shape[:1], sid.null if stage is None else stage, device=first.device)}


def _what(loss: Any) -> str:
    return f"a tensor {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
