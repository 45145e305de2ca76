"""Learning-rate factors after growth, with which a grown network trains exactly as the small one would have.

A grown weight is a times its source, and its gradient is b times the source's gradient (moments.py). Adam's update does
not depend on b. So if the shares of the copies are equal, a learning rate times a, with eps times b, keeps each copy at
a times its source (docs/growth.md 3.3). For a matrix whose fan-in grew r times, a is 1/r: the width rule of muP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from progc.lift.moments import dim_laws

if TYPE_CHECKING:
    from progc.lift.entry import TensorLift
    from progc.lift.lift import Lift


@dataclasses.dataclass(frozen=True)
class RateFactors:
    """Factors for the hyperparameters of a tensor.

    Attributes:
        lr: learning rate of Adam, AdamW and other optimizers whose update does not depend on the size of the gradient.
        lr_sgd: learning rate of SGD, whose update does.
        weight_decay: decoupled weight decay, so that lr * weight_decay stays.
        eps: eps of Adam.
        exact: False if the factors are means over entries that differ (uneven growth, packed queries, keys and values),
            and for tensors without a predecessor or cut from a larger one.
        columns: growth of the last dim, for Muon.
    """

    lr: float = 1.0
    lr_sgd: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    exact: bool = True
    columns: float = 1.0

    def then(self, later: RateFactors) -> RateFactors:
        """Returns the factors of two growths, one after the other."""
        return RateFactors(
            self.lr * later.lr,
            self.lr_sgd * later.lr_sgd,
            self.weight_decay * later.weight_decay,
            self.eps * later.eps,
            self.exact and later.exact,
            self.columns * later.columns,
        )


def learning_rate_factors(lift: Lift) -> dict[str, RateFactors]:
    """Returns the factors of every tensor that a lift changes, by name after growth; other tensors keep their rates.

    Buffers that grow are included. For several lifts, use `corrections`.
    """
    return {entry.name: _factors(entry) for entry in lift.tensors}


def corrections(lifts: Iterable[Lift]) -> dict[str, RateFactors]:
    """Returns the factors of growth in several steps, by name after the last; tensors without factors keep their rates.

    An inserted tensor has the factors of its source, since it has the same width.
    """
    total: dict[str, RateFactors] = {}
    for lift in lifts:
        own = learning_rate_factors(lift)
        known, total = total, {n: f for n, f in total.items() if n not in own and n not in lift.removed}
        for entry in lift.tensors:
            total[entry.name] = known.get(entry.source, RateFactors()).then(own[entry.name])
    return total


def _factors(entry: TensorLift) -> RateFactors:
    weight = gradient = 1.0
    drawn = entry.fill is not None or entry.init == "random" or entry.average or entry.resample is not None
    exact = not (entry.fresh or entry.storage or drawn)
    for law in dim_laws(entry).values():
        old = ~law.reset
        exact = exact and bool(old.all())
        if not bool(old.any()):
            continue
        own_weight, own_gradient = law.weight[old].abs(), law.gradient[old].abs()
        exact = exact and _even(own_weight) and _even(own_gradient)
        weight *= float(own_weight.mean())
        gradient *= float(own_gradient.mean())
    last = entry.dims[-1] if entry.dims else None
    columns = 1.0 if last is None else last.new / last.old
    return RateFactors(weight, weight / gradient, 1.0 / weight, gradient, exact, columns)


def _even(values: torch.Tensor) -> bool:
    return bool(torch.allclose(values, values[0].expand_as(values), rtol=1e-12, atol=0.0))
