"""How the time of a run divides among its stages, and what that saves. Plain numbers; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from progc.analysis.costs.counting import StageCost
from progc.schedule.stage import Stage

MEASURED, PREDICTED, COUNTED = "measured", "predicted", "counted"
BASES = (MEASURED, PREDICTED, COUNTED)
"""What a share is computed from: measured seconds, seconds predicted from the graph, floating-point operations."""


def per_sample(stages: Sequence[Stage], basis: str) -> list[float] | None:
    """What one sample of a training step costs in each stage, in the unit of the basis; None where one is unknown."""
    costs = [_cost(stage.cost, basis) for stage in stages]
    known = [cost for cost in costs if cost is not None]
    return known if known and len(known) == len(costs) else None


def time_shares(stages: Sequence[Stage], basis: str | None = None) -> tuple[float, ...] | None:
    """Each stage's part of the time of the whole run; by the first basis that is known, or by this one."""
    for name in BASES if basis is None else (basis,):
        steps = per_sample(stages, name)
        if steps is not None:
            spent = [stage.share * step for stage, step in zip(stages, steps, strict=True)]
            whole = math.fsum(spent)
            return tuple(part / whole for part in spent) if whole else None
    return None


def speedups(stages: Sequence[Stage]) -> dict[str, float]:
    """By basis, how many times longer the full network throughout would take; bases that are unknown are left out.

    The last stage stands for the full network.
    """
    found = {}
    for basis in BASES:
        steps = per_sample(stages, basis)
        spent = math.fsum(stage.share * step for stage, step in zip(stages, steps or (), strict=False))
        if steps and spent:
            found[basis] = steps[-1] / spent
    return found


def bound(stages: Sequence[Stage]) -> float:
    """No stages with these shares are faster: the last one is the full network, the others would have to be free."""
    return 1 / stages[-1].share


def _cost(cost: StageCost | None, basis: str) -> float | None:
    if cost is None:
        return None
    if basis == COUNTED:
        return cost.flops / cost.batch
    seconds = cost.seconds if basis == MEASURED else getattr(cost, "predicted_seconds", None)
    return None if seconds is None else seconds / cost.batch
