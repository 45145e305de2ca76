"""Loads the micro-batches of an epoch on one rank, and validates.

The samples of a step and their random transforms depend on (seed, epoch, index) only, not on workers, ranks,
micro-batches, or what was drawn before. Validation computes loss and accuracy over all validation samples, exactly also
for incomplete batches and several ranks.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from progc.data.batching import Batching
from progc.data.failures import Failure
from progc.data.finite import NotFiniteError, odd_outputs
from progc.data.order import Batches
from progc.data.task import Task
from progc.data.workers import Workers
from progc.errors import InputError


def steps_per_epoch(task: Task, batch: int) -> int:
    """Returns the optimizer steps of one epoch; an incomplete batch at the end is dropped.

    Raises:
        InputError: there are fewer samples than one batch.
    """
    count = len(task.samples) // batch
    if not count:
        raise InputError(f"expected at least a batch of {batch} samples, got {len(task.samples)}; use a smaller batch")
    return count


def steps(
    task: Task,
    *,
    batch: int,
    seed: int,
    epoch: int,
    start: int = 0,
    epochs: int | None = 1,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
) -> Generator[list[Any], None, None]:
    """Yields, for every optimizer step, the micro-batches of this rank, at the image size of the task's stage.

    The numbers of samples in the micro-batches of a step differ by at most one.

    Args:
        task: samples and how they are collated.
        batch: samples per step, over all ranks.
        seed, epoch: what order and random transforms depend on.
        start: samples of this epoch that are already used.
        epochs: number of epochs, of which this one is the first; None never ends.
        rank, world: rank of this process and number of ranks.
        accumulate: micro-batches per step.
        workers: processes that load samples; they end with the iterator.
        device: device to move batches to; None leaves them on the CPU.

    Raises:
        InputError: the ranks cannot share a batch, a rank has fewer samples per step than micro-batches, `epochs` is
            None and there are fewer samples than one batch, a sample cannot be read, samples do not make a batch, or a
            worker died (`OutsideError` if it was killed).
    """
    check_share(batch, world, accumulate)
    if epochs is None:
        steps_per_epoch(task, batch)

    def order(number: int, used: int = 0) -> Batches:
        return Batches(len(task.samples), batch, seed, number, start=used, rank=rank, world=world)

    first = order(epoch, start)
    if not len(first) and epochs == 1:
        return
    later = itertools.count(epoch + 1) if epochs is None else range(epoch + 1, epoch + epochs)
    # One loader for all epochs: its workers load the first batches of an epoch while the one before it ends.
    helpers = Workers(workers)
    made: Any = _Made(task.batching, seed)
    loader: DataLoader[Any] = DataLoader(
        made, batch_sampler=_Parts(itertools.chain([first], map(order, later)), accumulate), num_workers=workers,
        collate_fn=_unchanged, pin_memory=_pinned(device),
        # The loader draws a seed for its workers; it must not draw it from the generator that dropout uses.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=helpers.prepare if workers else None,
    )  # fmt: skip
    parts = helpers.started(loader)

    try:
        while received := helpers.received(parts, accumulate):
            yield [task.fit(_moved(_raised(part), device)) for part in received]
    except Exception as error:
        died = helpers.died()
        helpers.end()
        if died is not None:
            raise died from error
        raise
    finally:
        helpers.release()
        del parts  # ends the workers


@contextlib.contextmanager
def served(batches: Generator[list[Any], None, None]) -> Iterator[Iterator[list[Any]]]:
    """Yields the steps of a stage, and ends the workers that load them when the context ends.

    torch raises an error wherever the training process is when a worker is killed. So whatever is raised inside is
    passed to `steps`, which knows whether its workers live.
    """
    try:
        yield batches
    except Exception as error:
        batches.throw(error)
        raise
    finally:
        batches.close()


def _raised(batch: Any) -> Any:
    if isinstance(batch, Failure):
        raise batch.raised()
    return batch


def check_share(batch: int, world: int, accumulate: int = 1) -> None:
    """Checks that the ranks can share a batch, and split their part into micro-batches.

    Raises:
        InputError: they cannot.
    """
    if batch % world:
        raise InputError(
            f"a batch of {batch} for {world} ranks: expected a multiple of the number of ranks; use another batch"
        )
    if batch // world < accumulate:
        raise InputError(
            f"{batch // world} samples per rank cannot make {accumulate} micro-batches; use a larger batch"
        )


class _Made:
    """The batches of a task, by lists of (epoch, index); a DataLoader asks for them this way."""

    def __init__(self, batching: Batching, seed: int) -> None:
        self.batching, self.seed = batching, seed

    def __len__(self) -> int:
        return len(self.batching.samples)

    def __getitems__(self, places: list[tuple[int, int]]) -> Any:
        """Returns a batch, or the `Failure` that ends the run: a worker cannot pass on an exception with its place."""
        try:
            return self.batching.make([index for _, index in places], self.seed, places[0][0])
        except Exception as error:
            return Failure.of(error)


def _unchanged(batch: Any) -> Any:
    """The collate function of batches that are made already."""
    return batch


class _Parts:
    """The share of a rank in every batch of some epochs, split into micro-batches."""

    def __init__(self, epochs: Iterable[Batches], parts: int) -> None:
        self.epochs, self.parts = epochs, parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in itertools.chain.from_iterable(self.epochs):
            size, rest = divmod(len(indices), self.parts)
            begin = 0
            for part in range(self.parts):
                end = begin + size + (part < rest)
                yield indices[begin:end]
                begin = end


def _pinned(device: torch.device | None) -> bool:
    """Whether batches go through pinned memory: only from there does a GPU copy while the host continues."""
    return device is not None and device.type == "cuda"


def _moved(batch: Any, device: torch.device | None) -> Any:
    if device is None:
        return batch
    if type(batch) is list:  # what most batches are; this takes a tenth of the time that a walk over a tree takes
        return [_moved(item, device) for item in batch]
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def validate(
    call: Callable[[Any], Any],
    task: Task,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    mean: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
    device: torch.device | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Returns the mean `loss`, and `top1` and `top5` accuracy for logits `[batch, classes]` and integer labels.

    Args:
        call: computes the outputs of a batch.
        task: validation samples and loss.
        batch: samples per call on this rank.
        rank, world: rank of this process and number of ranks.
        mean: computes the mean of a tensor over ranks.
        device: device to move batches to; None leaves them on the CPU.
        stop: asked before every batch, with the same answer on all ranks; once it returns True, the result is None.

    Raises:
        InputError: there are no validation samples.
        NotFiniteError: outputs are not finite (`progc.data.finite`), on every rank.
    """
    validating = task.validating
    samples = validating.samples
    own = range(rank, len(samples), world)
    # Sums stay on the device: the host prepares the next batch while this one is computed.
    sums: dict[str, torch.Tensor] = {}
    flags: list[torch.Tensor] = []
    count = 0
    # All ranks call equally often: with sharded parameters, a call waits for the other ranks.
    for first in range(0, len(range(0, len(samples), world)), batch):
        if stop():
            return None
        counted = list(own[first : first + batch])
        chosen = counted or [0]
        # Random transforms of validation samples, if any, are the same at every validation.
        given = validating.make(chosen, seed=0, epoch=0)
        if _pinned(device):
            given = pytree.tree_map_only(torch.Tensor, lambda t: t if t.is_cuda else t.pin_memory(), given)
        given = _moved(given, device)
        given = task.fit(given)
        outputs = call(given)
        loss = task.loss(outputs, given).detach()
        flags.append(odd_outputs(outputs, loss))
        found = {"loss": loss.double() * len(chosen), **_right(outputs, given)}
        for name, value in found.items():
            added = value.double() if counted else torch.zeros_like(value, dtype=torch.float64)
            sums[name] = sums[name] + added if name in sums else added
        count += len(counted)
    names = sorted(sums)
    seen = [*(sums[name] for name in names), sums["loss"].new_full((), count), torch.stack(flags).double().sum()]
    *values, number, odd = mean(torch.stack(seen)).tolist()
    if odd:
        raise NotFiniteError(f"in {round(odd * world)} of {len(flags) * world} batches of validation samples")
    return {name: value / number for name, value in zip(names, values, strict=True)}


def _right(outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Counts correct samples, by top-1 and top-5, on the device."""
    logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor):
        return {}
    if logits.dim() != 2 or labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        return {}
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {"top1": first[:, :1].sum(), "top5": first.sum()}
