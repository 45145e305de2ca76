"""Tells whether a network computed something that is not finite, on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import CheckError


class NotFiniteError(CheckError):
    """Outputs of a network are not finite."""


def odd_outputs(outputs: Any, loss: torch.Tensor) -> torch.Tensor:
    """Returns whether outputs are not finite: bool, 0-d, on the device of the loss; the host does not wait.

    NaN counts always. An infinite output, such as the logit of a class that is masked, counts if the loss is not finite
    either.

    Args:
        outputs: what the network returned, nested.
        loss: the loss of these outputs, 0-d.
    """
    leaves = [
        leaf.detach() for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()) and leaf.numel()
    ]  # fmt: skip
    if not leaves:
        return loss.new_zeros((), dtype=torch.bool)
    nans = torch.stack([torch.isnan(leaf).any().to(loss.device) for leaf in leaves]).any()
    infinite = torch.stack([torch.isinf(leaf).any().to(loss.device) for leaf in leaves]).any()
    return nans | (infinite & ~torch.isfinite(loss.detach()))
