"""Classifier-free guidance with a stage identifier: the unconditional half of the batch gets the null row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import InputError
from progc.ir.identifier import StageIdentifier

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


def guided(
    module: Callable[..., Any],
    sid: StageIdentifier,
    conditional: Inputs,
    unconditional: Inputs,
    *,
    scale: float,
    stage: int | None = None,
    channels: int | None = None,
) -> Any:
    """One call over both halves: `u + scale * (c - u)` on every floating output.

    Args:
        module: of a program with a stage input; dim 0 of all its inputs and outputs is the batch.
        sid: `program.sid`.
        conditional: `(args, kwargs)` of the conditional half, without the stage.
        unconditional: those of the other half, of the same structure and batch size, with the null label or the empty
            prompt; it gets the null stage too.
        scale: 1 gives the conditional output, 0 the unconditional one.
        stage: of the conditional half; by default the last one.
        channels: how many of the first entries of dim 1 are guided; the others stay the conditional ones. None: all.

    Returns:
        The outputs for one half, in the structure that the module returns.

    Raises:
        InputError: the stage is fixed in the graph, there is no such stage, or the halves do not fit.
    """
    if sid.input is None:
        raise InputError(f"guided: the stage is fixed to {sid.stage}; make it an input with inject-sid{{stage=input}}")
    stage = sid.stages - 1 if stage is None else stage
    if not 0 <= stage <= sid.null:
        raise InputError(f"guided: stage is 0 to {sid.null} ({sid.null}: the null row), not {stage}")
    first, spec = pytree.tree_flatten((tuple(conditional[0]), dict(conditional[1])))
    second, other = pytree.tree_flatten((tuple(unconditional[0]), dict(unconditional[1])))
    tensors = [leaf for leaf in first if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if spec != other or not tensors or [_shape(leaf) for leaf in first] != [_shape(leaf) for leaf in second]:
        raise InputError("guided: both halves need inputs of one structure and of the same shapes, in the same order")
    half = tensors[0].shape[0]
    joined = [_joined(a, b) for a, b in zip(first, second, strict=True)]
    args, kwargs = pytree.tree_unflatten(joined, spec)
    stages = torch.tensor([stage, sid.null], device=tensors[0].device).repeat_interleave(half)
    outputs = module(*args, **kwargs, **{sid.input: stages})
    return pytree.tree_map(lambda leaf: _combined(leaf, half, scale, channels), outputs)


def _shape(leaf: Any) -> Any:
    return leaf.shape if isinstance(leaf, torch.Tensor) else None


def _joined(a: Any, b: Any) -> Any:
    return torch.cat([a, b]) if isinstance(a, torch.Tensor) and a.dim() else a


def _combined(leaf: Any, half: int, scale: float, channels: int | None) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != 2 * half:
        return leaf
    given, null = leaf[:half], leaf[half:]
    if not leaf.is_floating_point():
        return given
    combined = null + scale * (given - null)
    if channels is None:
        return combined
    return torch.cat([combined[:, :channels], given[:, channels:]], 1)
