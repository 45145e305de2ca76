"""Restores what a search may change: random states, buffers, gradients, flags and modes; and checks the weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from progc.errors import CheckError
from progc.ir.program import Program
from progc.ir.random_state import kept_random_states

_CHUNK = 1 << 20  # elements that are summed at a time
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@contextlib.contextmanager
def untouched(*held: Program | nn.Module, copies: bool = False) -> Iterator[None]:
    """Restores programs, modules and global random states at the end of the block, also after an error.

    It restores the random states of torch (CPU and an accelerator in use), Python and numpy; buffers and constants;
    gradients, which are None inside the block; `requires_grad`; and the mode and the tensors of modules. Averages of a
    program are restored like its tensors.

    Args:
        held: the programs and modules.
        copies: whether to restore weights too, from copies. Otherwise checksums of the weights are compared, which
            takes no memory, and a change is an error.

    Raises:
        CheckError: the bits of a weight changed, and `copies` is False.
    """
    modules = [part for one in held if isinstance(one, nn.Module) for part in one.modules()]
    before = [(part, part.training, dict(part._parameters), dict(part._buffers)) for part in modules]
    tensors = [_Tensor(name, tensor, copy=copies) for name, tensor in _tensors(held)]
    done = False
    try:
        with kept_random_states():
            yield
        done = True
    finally:
        for part, training, parameters, buffers in before:
            part.training = training
            part._parameters.clear()
            part._parameters.update(parameters)
            part._buffers.clear()
            part._buffers.update(buffers)
        changed = [tensor.name for tensor in tensors if not tensor.put_back()]
        if done and changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise CheckError(
                f"the search changed the weight `{changed[0]}`{more}, which no search may do; load the weights again, "
                "and leave out the proxy that writes to them"
            )


def checksum(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns two sums over a tensor's bits, one weighted by position; the same on every device."""
    words = _words(tensor)
    plain = placed = 0
    for start in range(0, words.numel(), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        odd = torch.arange(start, start + part.numel(), device=part.device, dtype=torch.int64) * 2 + 1
        plain += int(part.sum())
        placed += int((part * odd * 0x2545F4914F6CDD1D).sum())  # wraps around, the same everywhere
    return plain % 2**64, placed % 2**64


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of the same shape and dtype are equal bit by bit: NaN equals NaN, 0 does not equal -0."""
    return torch.equal(_words(a), _words(b))


def _words(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(_WORDS[flat.element_size()])


@dataclasses.dataclass
class _Tensor:
    """A tensor and its state at the start."""

    name: str
    tensor: torch.Tensor
    copy: bool

    def __post_init__(self) -> None:
        self.trains = self.tensor.requires_grad
        self.grad = self.tensor.grad if self.tensor.is_leaf else None
        if self.tensor.is_leaf:
            self.tensor.grad = None
        self.known = not self.tensor.is_meta
        self.kept: torch.Tensor | None = None
        self.sums: tuple[int, int] | None = None
        if self.known and (self.copy or not isinstance(self.tensor, nn.Parameter)):
            self.kept = self.tensor.detach().clone()
        elif self.known:
            self.sums = checksum(self.tensor)

    def put_back(self) -> bool:
        """Restores the tensor; returns whether it now equals its state at the start."""
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.trains)
            self.tensor.grad = self.grad
        if self.kept is not None:
            if not same_bits(self.tensor, self.kept):  # writing would count as a change for autograd
                with torch.no_grad():
                    self.tensor.copy_(self.kept)
            return True
        return self.sums is None or checksum(self.tensor) == self.sums


def _tensors(held: tuple[Program | nn.Module, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields each tensor once, with one of its names."""
    seen: set[int] = set()
    for one in held:
        if isinstance(one, Program):
            groups = [one.tensors, *(average.tensors for average in one.averages)]
            named = [pair for group in groups for pair in group.items()]
        else:
            named = [*one.named_parameters(), *one.named_buffers()]
        for name, tensor in named:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor
