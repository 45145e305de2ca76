"""What tests of growth share: running the user's own classes in float64, comparing train graphs and statistics."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from progc.growth.grow import Growth
from progc.ir.check import example_inputs, run_float64, stochastic
from progc.ir.program import Program
from progc.lift.index_map import IndexMap

EXACT = 1e-9


class _Wide(TorchFunctionMode):
    """float64 wherever a module asks for float32: some classes compute their norms in a dtype of their own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        wide = pytree.tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return func(*wide[0], **wide[1])


def outputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors that the module itself (no graph of ours) returns in eval mode and float64; the module stays as it is."""
    module = copy.deepcopy(module).double().eval()
    args, kwargs = pytree.tree_map(_double, (args, dict(kwargs)))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _Wide():
            return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]
    finally:
        torch.set_default_dtype(torch.float32)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def gap(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest difference of two lists of outputs, relative to the largest value of each output."""
    assert len(first) == len(second) and all(a.shape == b.shape for a, b in zip(first, second, strict=True))
    assert all(bool(torch.isfinite(a).all()) for a in (*first, *second) if a.is_floating_point())
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(first, second, strict=True))


def assert_loads(
    reference: nn.Module,
    state: Mapping[str, Tensor],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tolerance: float = EXACT,
) -> None:
    """`state` loads strictly into the class of the larger size, which then answers as `module` does."""
    reference.load_state_dict(dict(state), strict=True)
    assert sum(p.numel() for p in reference.parameters()) > sum(p.numel() for p in module.parameters())
    assert gap(outputs(module, args, kwargs), outputs(reference, args, kwargs)) < tolerance


def train_gap(before: Program, growth: Growth) -> float | None:
    """Largest relative difference of the train graphs: outputs, and the buffers they wrote against the grown old ones.

    None if a train graph draws random numbers. Buffers of inserted blocks, and of concatenations that these blocks
    appended to, have nothing to be compared with.
    """
    after = growth.program
    if any(stochastic(program.graphs["train"]) for program in (before, after)):
        return None
    inputs = example_inputs(before, 0)
    first, old = run_float64(before, "train", inputs)
    second, new = run_float64(after, "train", inputs)
    written = {name: tensor for name, tensor in old.items() if tensor.is_floating_point()}
    entries = [entry for lift in growth.plan.lifts for entry in lift.tensors]
    inserted = {entry.name for entry in entries if entry.fresh or any(map(_takes_in_new_parts, entry.dims))}
    for lift in growth.plan.lifts:
        chosen = tuple(entry for entry in lift.tensors if entry.source in written)
        written = dataclasses.replace(lift, tensors=chosen).apply(written)
    kept = [name for name in written if name not in inserted and name in new]
    assert not any(before.specs[name].persistent for name in old) or kept
    return gap([*first, *(written[name] for name in kept)], [*second, *(new[name] for name in kept)])


def _takes_in_new_parts(index_map: IndexMap | None) -> bool:
    return index_map is not None and (index_map.old == 0 or any(map(_takes_in_new_parts, index_map.parts)))
