"""Restores buffers, such as running statistics, after a step that is skipped.

The forward of a step updates them before anybody knows whether its loss is finite. A skipped step must not
leave them changed: running statistics would keep NaN from one bad batch, and the network would compute nothing finite
in eval mode. The choice between old and new values is made on the device, so the host does not
wait.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class StepBuffers:
    """Keeps the values of buffers before a step, and puts them back if the step is left out.

    buffers.keep()
    ...                       # forward and backward
    buffers.restore(left_out)
    """

    def __init__(self, buffers: Iterable[torch.Tensor]) -> None:
        """
        Args:
            buffers: the buffers that a step may change; each one is kept once, however often it is given.
        """
        kinds: dict[object, dict[int, torch.Tensor]] = {}
        for buffer in buffers:
            if buffer.numel():
                kinds.setdefault((buffer.dtype, buffer.device), {})[id(buffer)] = buffer
        self._kinds = [list(own.values()) for own in kinds.values()]
        self._kept: list[torch.Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copies the present values."""
        self._kept = [_joined(buffers) for buffers in self._kinds]

    @torch.no_grad()
    def restore(self, left_out: torch.Tensor | None = None) -> None:
        """Puts the kept values back.

        Args:
            left_out: 0-d, on the device of the step: 1 puts the values back, 0 leaves those of the step. The host does
                not read it. None puts them back.
        """
        for buffers, before in zip(self._kinds, self._kept, strict=True):
            values = before
            if left_out is not None:
                values = torch.where(left_out.to(before.device, non_blocking=True) != 0, before, _joined(buffers))
            pieces = values.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [p.view_as(b) for p, b in zip(pieces, buffers, strict=True)])
        self._kept = []


def _joined(buffers: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
