"""Grows the axes of small networks in every way and measures what comes out.

Networks are captured in float64, so that a factor such as 1/sqrt(2) costs no visible rounding: anything above
`EXACT` is a wrong rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import progc
from progc.analysis.axes import Axis
from progc.errors import NotLosslessError, TargetError
from progc.ir.check import compare, compare_train, stochastic
from progc.ir.program import Program
from progc.ir.verify import verify
from progc.passes.grow_width import GrowWidth

EXACT = 1e-9


def program_of(model: nn.Module, *args: Any) -> Program:
    """Captures a float64 copy of `model` with no tensor left at its initial value."""
    model = model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(noise.abs() * 0.3 if "var" in name else noise * 0.3)
    doubled = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    return progc.capture(model, tuple(doubled))


def widen(program: Program, sizes: Mapping[str, int], init: str = "copy", lossy: bool = False) -> Program:
    """Widens single axes and verifies the result."""
    entries = tuple(f"{name}:{size}" for name, size in sizes.items())
    result = GrowWidth(axes=entries, init=init, lossy=lossy).run(program)
    verify(result.program, "grow-width", before=program)
    return result.program


def difference(before: Program, after: Program, train: bool = True) -> float:
    """Largest relative difference in eval mode, and in train mode where it draws no random numbers."""
    found = compare(before, after, seed=3).max_rel
    if train and not stochastic(before.graphs["train"]):
        found = max(found, compare_train(before, after, seed=3).max_rel)
    return found


def attempt(program: Program, sizes: Mapping[str, int], init: str = "copy") -> str:
    """`exact`, or the reason of the refusal.

    Raises:
        AssertionError: growth went through and changed the function.
    """
    try:
        grown = widen(program, sizes, init)
    except (NotLosslessError, TargetError) as refusal:
        assert str(refusal)
        return str(refusal)
    found = difference(program, grown, train=all(size % program.axes[name].size == 0 for name, size in sizes.items()))
    assert found < EXACT, f"{dict(sizes)} with {init} changes the output by {found:.1e}"
    return "exact"


def axes_of(program: Program, tensor: str, dim: int = 0) -> list[Axis]:
    """The axes that run along one tensor dim."""
    return [axis for axis in program.axes.axes if any((s.tensor, s.dim) == (tensor, dim) for s in axis.spans)]


def sound(program: Program, single: bool = True) -> dict[str, str]:
    """Grows every axis alone and all together: to twice the size, to one unit more, with copies and new units.

    Returns:
        Axis name to the outcome of doubling it with copies, alone or with all others; pinned axes give their reason.
    """
    outcomes: dict[str, str] = {}
    growable = program.axes.growable
    for axis in program.axes.axes:
        assert axis.growable or axis.reason
        outcomes[axis.name] = axis.reason
    for axis in growable:
        if single:
            outcomes[axis.name] = attempt(program, {axis.name: 2 * axis.size})
            attempt(program, {axis.name: axis.size + 1})
            attempt(program, {axis.name: 2 * axis.size + 1}, "zero")
    if len(growable) > 1 or (growable and not single):
        together = attempt(program, {axis.name: 2 * axis.size for axis in growable})
        for init in ("copy", "zero"):
            attempt(program, {axis.name: axis.size + 1 + i % 2 for i, axis in enumerate(growable)}, init)
        if not single or together == "exact":
            outcomes.update({axis.name: together for axis in growable})
    return outcomes
