"""Counts a training step without running it: floating-point operations, saved activations, bytes of state.

The train graph runs forwards and backwards on fake tensors, which have shapes but no values. This takes a fraction of a
second and no memory, and counts the same operations as a real step. `StageCost` is the result as data.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from progc.analysis.costs.cost import StageCost
from progc.analysis.costs.operations import Operation, Recorder
from progc.errors import InputError, one_line
from progc.ir.check import GraphRun, empty_like
from progc.ir.devices import captured_device
from progc.ir.graphs import fingerprint
from progc.ir.program import Program

ADAM_STATES = 2
"""Number of tensors of the size of a parameter that Adam keeps for each parameter."""


class NotCounted(InputError):
    """The graph cannot be counted, because it needs the value of a tensor or nothing in it trains."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The operations and the memory of one training step.

    Attributes:
        batch: batch size, in samples.
        forward, backward: how often each operation runs.
        activation_bytes: bytes of the storages saved for the backward pass, without parameters and buffers.
        trainable: `(number of elements, bytes)` of each trainable tensor.
    """

    batch: int
    forward: Mapping[Operation, int]
    backward: Mapping[Operation, int]
    activation_bytes: int
    trainable: tuple[tuple[int, int], ...]

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass."""
        return sum(operation.flops * times for operation, times in self.forward.items())

    @property
    def backward_flops(self) -> int:
        """FLOPs of the backward pass."""
        return sum(operation.flops * times for operation, times in self.backward.items())


def count(program: Program, *, batch: int | None = None, optimizer_states: int = ADAM_STATES) -> StageCost:
    """Counts the cost of one training step of a program with its current trainable set.

    Args:
        program: the program; its parameters may be deferred.
        batch: batch size, in samples; by default that of the example inputs. A program with a fixed batch size is
            counted at this size, which is in `StageCost.batch`.
        optimizer_states: number of tensors that the optimizer keeps for each trainable parameter; 2 for Adam.

    Raises:
        NotCounted: the train graph needs the value of a tensor, or nothing in it trains.
        InputError: the network was not captured for this batch size.
    """
    return cost_of(program, step_of(program, batch), optimizer_states=optimizer_states)


def cost_of(program: Program, step: Step, *, optimizer_states: int = ADAM_STATES) -> StageCost:
    """Returns the cost of a counted step of the program."""
    held = [tensor for _, tensor in program.parameters()]
    trained = sum(size for _, size in step.trainable)
    return StageCost(
        batch=step.batch,
        parameters=program.num_parameters(),
        trainable=sum(number for number, _ in step.trainable),
        forward_flops=step.forward_flops,
        backward_flops=step.backward_flops,
        activation_bytes=step.activation_bytes,
        parameter_bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
        gradient_bytes=trained,
        optimizer_bytes=optimizer_states * trained,
    )


def step_of(program: Program, batch: int | None = None) -> Step:
    """Returns the operations and the saved activations of one training step; see `count`.

    They depend on the graph and not on weights, so they are remembered: a search that is part of training meets most of
    its candidates at several boundaries.
    """
    size = batch_of(program, batch)
    devices = sorted({str(tensor.device) for tensor in program.tensors.values()})
    key = fingerprint(program), size, " ".join(devices)
    if key in _known:
        _known.move_to_end(key)
        return _known[key]
    try:
        with FakeTensorMode():
            found = _step(program, size)
    except NotCounted:
        raise
    except Exception as error:  # any operation may ask for values
        reason = one_line(error).partition(". ")[0]
        raise NotCounted(reason) from error
    _known[key] = found
    if len(_known) > REMEMBERED:
        _known.popitem(last=False)
    return found


REMEMBERED = 256
"""Number of programs whose steps are remembered, those used last."""

_known: collections.OrderedDict[tuple[str, int, str], Step] = collections.OrderedDict()


def batch_of(program: Program, batch: int | None) -> int:
    """Returns the batch size to count at: `batch`, or that of the example inputs if `batch` is None or fixed.

    Raises:
        InputError: the network was not captured for this batch size.
    """
    placeholders = [node for node in program.graphs["train"].nodes if node.op == "placeholder"]
    signature = program.signature
    dynamic = [node for node, free in zip(placeholders, signature.batch_dims, strict=True) if free]
    sizes = [shape[0] for shape, free in zip(signature.shapes, signature.batch_dims, strict=True) if free and shape]
    if not sizes or batch is None:
        own = sizes or [shape[0] for shape in signature.shapes if shape]
        return own[0] if own else 1
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch: expected an integer of at least 1, got {batch!r}")
    low, high = dynamic[0].meta.get("batch_range", (1, None))
    if batch < low or (high is not None and batch > high):
        expected = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"the network was captured for a batch size {expected}, got {batch}; choose one in that range")
    return batch


def empty(program: Program, batch: int) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Returns empty tensors by name and empty inputs at a batch size, for a run in a fake mode."""
    tensors = {
        name: empty_like(tensor, captured_device(program, tensor))
        for name, tensor in program.tensors.items()
        if name not in program.tied
    }
    inputs = [
        _fake(leaf, batch if free else None) if isinstance(leaf, torch.Tensor) else leaf
        for leaf, free in zip(program.flat_example(), program.signature.batch_dims, strict=True)
    ]
    return tensors, inputs


def _step(program: Program, batch: int) -> Step:
    tensors, inputs = empty(program, batch)
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # holding a storage prevents its address from being reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with Recorder() as recorder, torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run = GraphRun(program.graphs["train"], tensors).run(*inputs, enable_io_processing=False)
        leaves = run if isinstance(run, (list, tuple)) else [run]
        ends = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if not ends:
            raise NotCounted("no output depends on a trainable parameter")
        kept = sum(storage.nbytes() for storage in saved.values())
        saved.clear()
        forward, recorder.found = recorder.found, collections.Counter()
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
    trainable = [tensor for _, tensor in program.parameters() if tensor.requires_grad]
    sizes = tuple((tensor.numel(), tensor.numel() * tensor.element_size()) for tensor in trainable)
    return Step(batch, forward, recorder.found, kept, sizes)


def _fake(tensor: torch.Tensor, batch: int | None = None) -> torch.Tensor:
    """Returns an empty tensor of the same layout, with size `batch` in dim 0 if given."""
    if batch is not None and batch != tensor.shape[0]:
        return torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    return empty_like(tensor)
