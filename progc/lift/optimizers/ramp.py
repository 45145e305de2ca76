"""A ramp for what is new: updates of tensors and units without a past start small and reach their size in N steps.

It scales updates, not gradients: Adam divides the size of a gradient away, so a factor on gradients would do nothing.
After the optimizer's step, update number t of N is cut to t / N of what it was, in the new units alone. This is right
for every optimizer, and costs a copy of the ramped tensors during the ramp.
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
"""Which units are new, by dim; an entry of the tensor is new if one of its units is. Empty: the whole tensor is."""


@dataclasses.dataclass
class Ramp:
    """What is new after a growth, and how far its ramp is; plain data.

        ramp = Ramp.of(plan.lifts, steps=200)
        ramp.attach(optimizer, program)      # before training goes on, and again after loading

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
        """The ramp of what these lifts, in order, made without a past: units and tensors whose moments start at m = 0.

        Copies are not new: their moments are those of their source.

        Raises:
            InputError: `steps` is below 1.
        """
        if steps < 1:
            raise InputError(f"ramp: expected 1 step or more, not {steps}")
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
        """What the next update is multiplied by."""
        return min((self.done + 1) / self.steps, 1.0)

    def attach(self, optimizer: Optimizer, program: Program) -> RemovableHandle | None:
        """Hooks the rest of the ramp into the optimizer's step; it takes itself off when the ramp ends.

        Args:
            program: the grown program, whose parameters the optimizer trains; those it does not train are left out.
                After the next growth attach a new ramp: this one stops.

        Returns:
            A handle that ends the ramp early; None if nothing is left to do.

        Raises:
            InputError: a name or size that the program does not have.
        """
        for name, own in self.new.items():
            shape = program.tensors[name].shape if name in program.tensors else ()
            if name not in program.tensors or any(d >= len(shape) or len(f) != shape[d] for d, f in own.items()):
                raise InputError(f"ramp: the program has no {name} of the ramp's size; make it from the last growth")
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
    """Removes two hooks."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Ends the ramp."""
        for handle in self._handles:
            handle.remove()


def _new(entry: TensorLift, known: New | None) -> New | None:
    """New units of a grown tensor: those of its source, and those that this entry makes; None if none is."""
    anew = entry.fresh or entry.fill is not None or (entry.init == "random" and not any(entry.dims))
    if anew or known == {}:
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
    """bool, of a shape that broadcasts with the tensor."""
    mask = torch.full((1,) * tensor.dim(), not own, dtype=torch.bool, device=tensor.device)
    for dim, flags in own.items():
        along = [1] * tensor.dim()
        along[dim] = -1
        mask = mask | torch.tensor(flags, device=tensor.device).reshape(along)
    return mask
