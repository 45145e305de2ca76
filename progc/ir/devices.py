"""The device on which a program was captured, and the one that its tensors are on now.

A graph names the device of its capture wherever it creates a tensor (`arange`, masks), and the example inputs are on
that device. Tensors may be moved, as a trainer moves them to a GPU. Shapes are found on the device of the capture,
where graph, inputs and tensors agree; what runs is placed on the device of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from progc.ir.deferred import device_of

if TYPE_CHECKING:
    from progc.ir.program import Program


def home_of(program: Program) -> torch.device | None:
    """Returns the device on which a program was captured: that of its example inputs, or of its tensors without any."""
    leaf = next((leaf for leaf in program.flat_example() if isinstance(leaf, torch.Tensor)), None)
    return _present(program) if leaf is None else leaf.device


def captured_device(program: Program, tensor: torch.Tensor) -> torch.device:
    """Returns the device that a tensor of the program was on when it was captured."""
    here, home = device_of(tensor), home_of(program)
    return home if home is not None and here == _present(program) else here


def placed(value: Any, tensors: Iterable[torch.Tensor]) -> Any:
    """Returns nested arguments of an operation with the device of the tensors in place of every device."""
    leaves = pytree.tree_leaves(value)
    if not any(isinstance(leaf, torch.device) for leaf in leaves):
        return value
    first = next(iter(tensors), None)
    if first is None:
        return value
    return pytree.tree_map_only(torch.device, lambda _: device_of(first), value)


def _present(program: Program) -> torch.device | None:
    names = sorted(program.tensors, key=lambda name: program.specs[name].kind != "parameter")
    return device_of(program.tensors[names[0]]) if names else None
