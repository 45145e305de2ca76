"""One training step, counted and not run: floating-point operations, saved activations, bytes of state.

The train graph runs forwards and backwards on fake tensors, which have shapes and no values: this takes a fraction of a
second and no memory, and counts what a real step would.

What one training step costs, as data.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from progc.analysis.costs.operations import Operation, Recorder
from progc.errors import InputError
from progc.files.json import known_fields
from progc.ir.check import GraphRun, empty_like
from progc.ir.deferred import device_of
from progc.ir.program import Program

ADAM_STATES = 2
"""Tensors of a parameter's size that Adam keeps for each."""


class NotCounted(InputError):
    """The graph cannot run without values: it asks for a number that a tensor holds; says why."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step does.

    Attributes:
        batch: samples.
        forward, backward: each operation to how often it runs.
        activation_bytes: distinct storages that the backward needs, parameters and buffers not counted.
        trainable: the trainable tensors, as `(number of scalars, bytes)`.
    """

    batch: int
    forward: Mapping[Operation, int]
    backward: Mapping[Operation, int]
    activation_bytes: int
    trainable: tuple[tuple[int, int], ...]

    @property
    def forward_flops(self) -> int:
        """Of all operations of the forward."""
        return sum(operation.flops * times for operation, times in self.forward.items())

    @property
    def backward_flops(self) -> int:
        """Of all operations of the backward."""
        return sum(operation.flops * times for operation, times in self.backward.items())


def count(program: Program, *, batch: int | None = None, optimizer_states: int = ADAM_STATES) -> StageCost:
    """What one training step of a program with its present trainable set costs. Parameters may be deferred.

    Args:
        batch: samples; None: those of the example inputs. A program whose batch is fixed is counted at its own, which
            `StageCost.batch` tells.
        optimizer_states: tensors of a parameter's size that the optimizer keeps for each trainable one; Adam has 2.

    Raises:
        NotCounted: the train graph does not run without values, or nothing in it trains.
        InputError: a batch for which the network was not captured.
    """
    return cost_of(program, step_of(program, batch), optimizer_states=optimizer_states)


def cost_of(program: Program, step: Step, *, optimizer_states: int = ADAM_STATES) -> StageCost:
    """The cost of a step of the program."""
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
    """The operations of one training step and what it keeps; see `count`."""
    size = batch_of(program, batch)
    try:
        with FakeTensorMode():
            return _step(program, size)
    except NotCounted:
        raise
    except Exception as error:  # operations of all kinds may ask for values
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise NotCounted(reason) from error


def batch_of(program: Program, batch: int | None) -> int:
    """The batch that is counted where `batch` is asked for: the example's if that is fixed.

    Raises:
        InputError: not a batch for which the network was captured.
    """
    placeholders = [node for node in program.graphs["train"].nodes if node.op == "placeholder"]
    signature = program.signature
    dynamic = [node for node, free in zip(placeholders, signature.batch_dims, strict=True) if free]
    sizes = [shape[0] for shape, free in zip(signature.shapes, signature.batch_dims, strict=True) if free and shape]
    if not sizes or batch is None:
        own = sizes or [shape[0] for shape in signature.shapes if shape]
        return own[0] if own else 1
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch is a whole number from 1 on, not {batch!r}")
    low, high = dynamic[0].meta.get("batch_range", (1, None))
    if batch < low or (high is not None and batch > high):
        expected = f"from {low} on" if high is None else f"from {low} to {high}"
        raise InputError(f"the network takes a batch {expected}, not {batch}: its code has another path for others")
    return batch


def empty(program: Program, batch: int) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The program's tensors by name, and its inputs at a batch, all empty: for a run under a fake mode."""
    tensors = {name: _fake(tensor) for name, tensor in program.tensors.items() if name not in program.tied}
    inputs = [
        _fake(leaf, batch if free else None) if isinstance(leaf, torch.Tensor) else leaf
        for leaf, free in zip(program.flat_example(), program.signature.batch_dims, strict=True)
    ]
    return tensors, inputs


def _step(program: Program, batch: int) -> Step:
    tensors, inputs = empty(program, batch)
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its address from being used again

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
    """A tensor of the same layout, with another size in dim 0 if one is given."""
    device = device_of(tensor)
    if batch is not None and batch != tensor.shape[0]:
        return torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype, device=device)
    return empty_like(tensor, device)


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What one training step of a stage costs, at the batch size it was counted for.

    Attributes:
        batch: samples per step.
        parameters, trainable: scalar parameters, and those of them that train.
        forward_flops, backward_flops: of matrix products, convolutions and attention; a multiply-add is two.
        activation_bytes: what the backward keeps, without parameters and buffers.
        parameter_bytes, gradient_bytes, optimizer_bytes: of the stage's parameters, gradients of the trainable ones,
            and what the optimizer (Adam, unless said otherwise) keeps for these.
        seconds: measured, or None.
        predicted_seconds: from the graph by usual constants of a device, for ratios; or None.
    """

    batch: int
    parameters: int
    trainable: int
    forward_flops: int
    backward_flops: int
    activation_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    seconds: float | None = None
    predicted_seconds: float | None = None

    @property
    def flops(self) -> int:
        """Of one step, forwards and backwards."""
        return self.forward_flops + self.backward_flops

    @property
    def memory(self) -> int:
        """Bytes that a step needs at most, buffers and workspaces of kernels not counted."""
        return self.activation_bytes + self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageCost:
        """What `to_json` gave.

        Raises:
            InputError: an unknown or a missing key.
        """
        fields = known_fields(cls, data, "cost")
        missing = {field.name for field in dataclasses.fields(cls)} - fields.keys() - {"seconds", "predicted_seconds"}
        if missing:
            raise InputError(f"cost: key `{sorted(missing)[0]}` is missing; make the plan again")
        return cls(**fields)
