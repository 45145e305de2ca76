"""What a training step costs, counted and not timed: floating-point operations, saved activations, optimizer state.

The train graph runs forwards and backwards on fake tensors, which have shapes and no values: this takes a fraction of a
second and no memory, and counts what a real step would.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from progc.deferred import device_of
from progc.program import Program

ADAM_STATES = 2
"""Tensors of a parameter's size that Adam keeps for each."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """One training step at the example's sizes.

    Attributes:
        forward_flops, backward_flops: of matrix products, convolutions and attention (torch's counter).
        activation_bytes: storages that the backward needs, parameters and buffers not counted.
        optimizer_bytes: Adam's two moments of the trainable parameters.
    """

    forward_flops: int
    backward_flops: int
    activation_bytes: int
    optimizer_bytes: int


class NotCounted(Exception):
    """The graph cannot run without values: it asks for a number that a tensor holds; says why."""


def cost(program: Program) -> Cost:
    """Counts one training step of a program with its present trainable set.

    Raises:
        NotCounted: the train graph does not run on fake tensors, or nothing in it trains.
    """
    optimizer = sum(
        ADAM_STATES * tensor.numel() * tensor.element_size()
        for _, tensor in program.parameters()
        if tensor.requires_grad
    )
    try:
        with FakeTensorMode():
            forward, backward, saved = _step(program)
    except NotCounted:
        raise
    except Exception as error:  # operations of all kinds may ask for values
        raise NotCounted(" ".join(str(error).split()).partition(". ")[0] or type(error).__name__) from error
    return Cost(forward, backward, saved, optimizer)


def _step(program: Program) -> tuple[int, int, int]:
    """Operations forwards and backwards, and bytes saved in between."""
    tensors = {name: _fake(tensor) for name, tensor in program.tensors.items() if name not in program.tied}
    inputs = [_fake(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in program.flat_example()]
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its address from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run = _Interpreter(program.graphs["train"], tensors).run(*inputs, enable_io_processing=False)
            leaves = run if isinstance(run, (list, tuple)) else [run]
            ends = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
            if not ends:
                raise NotCounted("no output depends on a trainable parameter")
            kept = sum(storage.nbytes() for storage in saved.values())
        forward = counter.get_total_flops()
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        return forward, counter.get_total_flops() - forward, kept


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device_of(tensor))
    return empty.requires_grad_(tensor.requires_grad)


class _Interpreter(fx.Interpreter):
    """Runs a graph over tensors that are given by name."""

    def __init__(self, graph: fx.Graph, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=graph)
        self.extra_traceback = False
        self.tensors = tensors

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> torch.Tensor:
        return self.tensors[str(target)]
