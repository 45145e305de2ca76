"""A ramp for new tensors and units: their updates start small and reach full size in N steps.

It scales updates, not gradients: Adam divides by the size of the gradient, so a factor on gradients would have no
effect. After the optimizer's step, update number t of N is scaled by t / N, in the new units alone. This works with
every optimizer and takes a copy of the ramped tensors during the ramp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from progc.errors import InputError
from progc.ir.program import Program
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift, from_runs, to_runs
from progc.lift.moments import dim_laws

New = Mapping[int, tuple[bool, ...]]
"""Which units are new, by dim; an entry of the tensor is new if one of its units is. Empty: the whole tensor is new."""


@dataclasses.dataclass
class Ramp:
    """The new units after a growth, and the progress of their ramp; plain data.

        ramp = Ramp.of(plan.lifts, steps=200)
        ramp.attach(optimizer, program)      # before training continues, and again after loading

    Attributes:
        steps: length of the ramp in optimizer steps.
        new: by parameter name after growth.
        done: optimizer steps taken so far.
    """

    steps: int
    new: dict[str, New]
    done: int = 0

    @staticmethod
    def of(lifts: Iterable[Lift], steps: int) -> Ramp:
        """Returns the ramp of all units and tensors that these lifts, in order, created: those whose m starts at 0.

        Copies are not new: they have the moments of their source.

        Raises:
            InputError: `steps` is below 1.
        """
        if steps < 1:
            raise InputError(f"ramp: expected at least 1 step, got {steps}")
        new: dict[str, New] = {}
        for lift in lifts:
            entries = {entry.name: entry for entry in lift.tensors}
            known, new = new, {n: own for n, own in new.items() if n not in entries and n not in lift.removed}
            for name, entry in entries.items():
                own = _new(entry, known.get(entry.source))
                if own is not None:
                    new[name] = own
            new.update({item.name: {} for item in lift.made})
        return Ramp(steps, new)

    @property
    def factor(self) -> float:
        """The factor of the next update."""
        return min((self.done + 1) / self.steps, 1.0)

    def attach(self, optimizer: Optimizer, program: Program) -> RemovableHandle | None:
        """Registers the rest of the ramp as hooks of the optimizer's step; they are removed when the ramp ends.

        Args:
            optimizer: the optimizer; parameters that it does not train are skipped.
            program: the grown program. After the next growth, attach a new ramp: this one stops.

        Returns:
            A handle whose `remove` ends the ramp early; None if the ramp is over.

        Raises:
            InputError: the program does not have a tensor of the ramp, or has it in another size.
        """
        for name, own in self.new.items():
            shape = program.tensors[name].shape if name in program.tensors else ()
            if name not in program.tensors or any(d >= len(shape) or len(f) != shape[d] for d, f in own.items()):
                raise InputError(
                    f"ramp: the program has no {name} of the ramp's size; create the ramp from the last growth"
                )
        if self.done >= self.steps or not self.new:
            return None
        masks = {
            name: _mask(program.tensors[name], own)
            for name, own in self.new.items()
            if program.specs[name].kind == "parameter"
        }
        held: dict[str, torch.Tensor] = {}

        def before(*_: Any) -> None:
            trained = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
            held.clear()
            held.update({n: program.tensors[n].detach().clone() for n in masks if id(program.tensors[n]) in trained})

        def after(*_: Any) -> None:
            kept = 1.0 - self.factor
            with torch.no_grad():
                for name, old in held.items():
                    tensor = program.tensors[name]
                    tensor.copy_(torch.where(masks[name], torch.lerp(tensor, old, kept), tensor))
            held.clear()
            self.done += 1
            if self.done >= self.steps:
                first.remove()
                second.remove()

        first = optimizer.register_step_pre_hook(before)
        second = optimizer.register_step_post_hook(after)
        return _Both(first, second)  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        new = {name: {str(dim): to_runs(flags) for dim, flags in own.items()} for name, own in self.new.items()}
        return {"steps": self.steps, "done": self.done, "new": new}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Ramp:
        """Reads what `to_json` wrote."""
        new: dict[str, New] = {
            name: {int(dim): tuple(bool(flag) for flag in from_runs(runs)) for dim, runs in own.items()}
            for name, own in data["new"].items()
        }
        return Ramp(data["steps"], new, data["done"])


class _Both:
    """A handle of two hooks."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Ends the ramp."""
        for handle in self._handles:
            handle.remove()


def _new(entry: TensorLift, known: New | None) -> New | None:
    """New units of a grown tensor: those of its source, and those that this entry adds; None if there are none."""
    created = entry.fresh or entry.fill is not None or (entry.init == "random" and not any(entry.dims))
    if created or known == {}:
        return {}
    flags: dict[int, torch.Tensor] = {dim: torch.tensor(own) for dim, own in (known or {}).items()}
    for dim, law in dim_laws(entry).items():
        own = law.reset
        if dim in flags:
            own = own | (flags[dim] if law.index is None else flags[dim][law.index])
        flags[dim] = own
    found = {dim: tuple(bool(flag) for flag in own.tolist()) for dim, own in flags.items() if bool(own.any())}
    return found or None


def _mask(tensor: torch.Tensor, own: New) -> torch.Tensor:
    """The mask of new entries: bool, in a shape that broadcasts with the tensor."""
    mask = torch.full((1,) * tensor.dim(), not own, dtype=torch.bool, device=tensor.device)
    for dim, flags in own.items():
        along = [1] * tensor.dim()
        along[dim] = -1
        mask = mask | torch.tensor(flags, device=tensor.device).reshape(along)
    return mask
