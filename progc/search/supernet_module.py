"""A supernet as one module that a training loop can train: every forward runs the chosen sub-network.

The module has the parameters and buffers of the supernet, under the names of the user's model, so optimizers, averages,
wrappers of several processes and checkpoints treat it as any other stage. Buffers that a sub-network has of its own,
such as running statistics, are further buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from progc.ir.module import ProgramModule, register_all
from progc.ir.program import TensorSpec
from progc.search.supernet import SubNetwork, Supernet

OWN = "sub_networks"
"""Prefix of the buffers that belong to single sub-networks: `sub_networks.NUMBER.NAME`."""


class SupernetModule(ProgramModule):
    """Runs a sub-network of a supernet, or the whole supernet.

    Attributes:
        members: the sub-networks.
        chosen: index of the sub-network that a call runs; None runs the whole supernet.
        leaves_out: that a call may leave parameters out, which wrappers of several processes have to know.
    """

    leaves_out = True

    def __init__(self, supernet: Supernet, buffers: Sequence[Mapping[str, torch.Tensor]] | None = None) -> None:
        """
        Args:
            supernet: the program and its sub-networks.
            buffers: the buffers that each sub-network has of its own; None takes those that it was cut out with.
        """
        super().__init__(supernet.program)
        self.members: tuple[SubNetwork, ...] = supernet.members
        self.chosen: int | None = None
        given = [member.statistics for member in self.members] if buffers is None else buffers
        own = {f"{OWN}.{number}.{name}": tensor for number, held in enumerate(given) for name, tensor in held.items()}
        register_all(self, own, dict.fromkeys(own, TensorSpec("buffer")))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the captured module takes and returns, at the image size of the sub-network."""
        if self.chosen is None:
            return super().forward(*args, **kwargs)
        member = self.members[self.chosen]
        member.module.train(self.training)
        # Read here, since wrappers put other tensors in the place of parameters.
        given = {
            **dict(self.named_parameters(remove_duplicate=False)),
            **dict(self.named_buffers(remove_duplicate=False)),
        }
        tensors = member.leaves(given, self.buffers_of(self.chosen))
        return torch.func.functional_call(member.module, tensors, args, kwargs)

    def buffers_of(self, number: int) -> dict[str, torch.Tensor]:
        """Returns the buffers that sub-network `number` has of its own, by their names in its program."""
        prefix = f"{OWN}.{number}."
        return {name.removeprefix(prefix): b for name, b in self.named_buffers() if name.startswith(prefix)}

    def tracked(self) -> dict[str, torch.Tensor]:
        """Returns the persistent tensors of the supernet itself, by name: what averages track."""
        held = self.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in held.items() if not name.startswith(f"{OWN}.")}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> SupernetModule:
        """Also moves what sub-networks hold that is not the supernet's, such as constants of their graphs."""
        super()._apply(fn, recurse)
        for member in self.members:
            member.module._apply(fn)
        return self
