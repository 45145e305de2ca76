"""A search leaves what it looks at as it was: random states, weights, buffers, gradients, flags and modes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from progc.errors import CheckError
from progc.ir.program import Program
from progc.ir.random_state import kept_random_states

_CHUNK = 1 << 20  # values of a tensor that are summed at a time
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@contextlib.contextmanager
def untouched(*held: Program | nn.Module, copies: bool = False) -> Iterator[None]:
    """Puts back, at the end and after an error, what happened to programs, modules and random states.

    Put back are the random states of torch (the CPU's and an accelerator's that is in use), of Python and of numpy;
    buffers and constants; gradients, which are out of reach meanwhile; which parameters train; and, of modules, the
    mode and which tensors they hold. Averages of a program count as its tensors.

    Args:
        copies: put back weights too, from copies. Otherwise weights are summed up before and after, which needs no
            memory, and a change is an error.

    Raises:
        CheckError: a weight was changed, bit for bit, and there is no copy of it.
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
                f"the search changed the weight `{changed[0]}`{more}; a search must not: load the weights again, and "
                "leave out the proxy that writes to them"
            )


def checksum(tensor: torch.Tensor) -> tuple[int, int]:
    """Two sums over a tensor's bits, one of them by position; equal bits give equal sums. Exact on every device."""
    words = _words(tensor)
    plain = placed = 0
    for start in range(0, words.numel(), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        odd = torch.arange(start, start + part.numel(), device=part.device, dtype=torch.int64) * 2 + 1
        plain += int(part.sum())
        placed += int((part * odd * 0x2545F4914F6CDD1D).sum())  # wraps around, the same everywhere
    return plain % 2**64, placed % 2**64


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal bit for bit; NaN equals NaN, 0 is not -0."""
    return torch.equal(_words(a), _words(b))


def _words(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(_WORDS[flat.element_size()])


@dataclasses.dataclass
class _Tensor:
    """One tensor and what it was."""

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
        """Whether the tensor is now what it was."""
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
    """Each tensor once, with a name of it."""
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
