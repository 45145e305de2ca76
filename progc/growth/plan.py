"""The growth plan: a complete description of a growth, as data.

A plan contains the lifts, so it alone turns any set of tensors of the small network (its weights, an EMA copy) into
those of the large one, without a graph and without the code of the model. It is plain JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from progc.errors import first_of
from progc.ir.deferred import all_deferred, all_values
from progc.lift.lift import Lift
from progc.lift.revert import revert
from progc.transforms.width.widening import AxisGrowth

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ChainGrowth:
    """Growth of one chain: depth before and after, as users count it."""

    chain: str
    old: int
    new: int


@dataclasses.dataclass(frozen=True)
class GrowthPlan:
    """A complete description of a growth.

    Attributes:
        pipeline: the passes as text.
        axes: size and kind of growth for every axis that grows.
        chains: depth of every chain that grows.
        inits: how new weights are made, by `width` and `depth`.
        lossless: whether analysis proves that the function is preserved.
        reasons: why it is not lossless; empty if it is.
        notes: further notes for the user.
        eval_only: why a lossless growth is exact in eval mode only; empty if it is exact in train mode too.
        lifts: the steps in order.
        seed: seed of noise and random weights.
    """

    pipeline: str
    axes: tuple[AxisGrowth, ...]
    chains: tuple[ChainGrowth, ...]
    inits: Mapping[str, str]
    lossless: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    lifts: tuple[Lift, ...]
    seed: int
    eval_only: tuple[str, ...] = ()

    def apply(
        self, tensors: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Grows a set of tensors, given by every name of the small program, step by step.

        Args:
            tensors: the tensors by name.
            average: their averaged copy, for growth that reads one (init mogrow).
        """
        return all_values(self.deferred(tensors, average))

    def deferred(
        self, tensors: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns the result of `apply` with floating tensors deferred (progc/ir/deferred.py): made when needed."""
        grown = all_deferred(tensors)
        averaged = None if average is None else all_deferred(average)
        for lift in self.lifts:
            grown = lift.apply(grown, averaged)
            averaged = None if averaged is None else lift.apply(averaged)
        return grown

    def moments(self, state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Grows optimizer state by parameter name, step by step (see `progc.lift.moments`)."""
        grown = {name: dict(own) for name, own in state.items()}
        for lift in self.lifts:
            grown = lift.moments(grown)
        return grown

    def revert(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the tensors of the small network from those of the grown one, step by step backwards.

        Exact right after growth, up to the rounding of factors; a best fit for tensors that were trained further (see
        `progc.lift.revert`).

        Raises:
            InputError: a tensor is missing, or was made in a way that cannot be undone.
        """
        old = dict(tensors)
        for lift in reversed(self.lifts):
            old = revert(lift, old)
        return old

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; `from_json` is the inverse."""
        return {
            "format_version": FORMAT_VERSION,
            "pipeline": self.pipeline,
            "axes": [dataclasses.asdict(growth) for growth in self.axes],
            "chains": [dataclasses.asdict(growth) for growth in self.chains],
            "inits": dict(self.inits),
            "lossless": self.lossless,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "eval_only": list(self.eval_only),
            "seed": self.seed,
            "lifts": [lift.to_json() for lift in self.lifts],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> GrowthPlan:
        """Reads the result of `to_json`."""
        return GrowthPlan(
            pipeline=data["pipeline"],
            axes=tuple(AxisGrowth(**growth) for growth in data["axes"]),
            chains=tuple(ChainGrowth(**growth) for growth in data["chains"]),
            inits=dict(data["inits"]),
            lossless=data["lossless"],
            reasons=tuple(data["reasons"]),
            notes=tuple(data["notes"]),
            lifts=tuple(Lift.from_json(lift) for lift in data["lifts"]),
            seed=data["seed"],
            eval_only=tuple(data.get("eval_only", ())),
        )

    def __str__(self) -> str:
        if not self.axes and not self.chains:
            return "growth plan: nothing grows\n"
        lines = ["growth plan"]
        lines += [f"  depth  {c.chain}: {c.old} -> {c.new} blocks ({self.inits['depth']})" for c in self.chains]
        grouped: dict[tuple[int, int, str], list[str]] = {}
        for growth in self.axes:
            grouped.setdefault((growth.old, growth.new, growth.kind), []).append(growth.axis)
        for (old, new, kind), names in grouped.items():
            lines.append(f"  width  {first_of(names)}: {old} -> {new} ({kind})")
        return "\n".join(lines) + "\n"
