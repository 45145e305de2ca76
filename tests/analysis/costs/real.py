"""Steps with values, to compare counts with."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from progc.ir.program import Program


def copied(program: Program) -> Program:
    """Over tensors of its own."""
    fresh = {id(t): t.detach().clone() for t in program.tensors.values()}
    made = {
        id(t): nn.Parameter(fresh[id(t)], t.requires_grad) if isinstance(t, nn.Parameter) else fresh[id(t)]
        for t in program.tensors.values()
    }
    return program.replace(tensors={name: made[id(tensor)] for name, tensor in program.tensors.items()})


def outputs(result: Any) -> list[torch.Tensor]:
    leaves = result.to_tuple() if hasattr(result, "to_tuple") else pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


def saved_bytes(program: Program) -> int:
    """Bytes of the distinct storages that autograd saves in a real forward; parameters and buffers are not counted."""
    module = program.module().train()
    own = {tensor.untyped_storage().data_ptr() for tensor in program.tensors.values()}
    saved: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(*program.example[0], **program.example[1])
        total = sum(storage.nbytes() for storage in saved.values())
    assert outputs(result)
    return total


def flops(program: Program) -> tuple[int, int]:
    """Forwards and backwards by torch's counter, with attention as plain products, the only form that it knows here."""
    module = program.module().train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ends = outputs(module(*program.example[0], **program.example[1]))
        forward = counter.get_total_flops()
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        return forward, counter.get_total_flops() - forward


class Live(TorchDispatchMode):
    """Bytes of storages that operations made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Any] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in pytree.tree_leaves((args, kwargs)) if _tensor(leaf)}
        for leaf in pytree.tree_leaves(out):
            if _tensor(leaf) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._begin(storage._cdata, storage)
        return out

    def _begin(self, key: int, storage: Any) -> None:
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self.now -= size


def _tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def peak_bytes(program: Program) -> int:
    """Most bytes that are alive in a step with Adam, parameters included."""
    module = program.module().train()
    training = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(training, foreach=False)
    with Live() as live:
        for _ in range(2):
            optimizer.zero_grad()
            ends = outputs(module(*program.example[0], **program.example[1]))
            torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
            del ends
            optimizer.step()
    return live.peak + sum(p.numel() * p.element_size() for p in module.parameters())
