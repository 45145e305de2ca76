"""A program's graph run node by node over tensors that are given by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn


class GraphRun(fx.Interpreter):
    """Runs a graph; `env` holds the value of every node that is still needed.

    Args:
        tensors: real or fake, by the names that the graph reads.
        keep: whether all values stay in `env` until the end.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, torch.Tensor], *, keep: bool = False) -> None:
        super().__init__(nn.Module(), graph=graph, garbage_collect_values=not keep)
        self.extra_traceback = False
        self.tensors = tensors

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """A tensor by name."""
        return self.tensors[str(target)]


def empty_like(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """An empty tensor of the same strides, dtype and need for a gradient; under a fake mode it takes no memory."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device or tensor.device)
    return empty.requires_grad_(tensor.requires_grad)
