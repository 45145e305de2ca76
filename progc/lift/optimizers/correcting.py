"""Corrects learning rates and weight decay: splits the groups of an optimizer by the factors of progc/lift/rates.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from progc.errors import InputError
from progc.ir.program import Program
from progc.lift.optimizers.holdings import Holdings, commit, holdings, settled
from progc.lift.rates import RateFactors

Rule = Literal["normalised", "sgd", "muon", "none"]
"""How an update depends on the gradient: `normalised` (not on its size: Adam, Lion), `sgd` (proportional to it), `muon`
(on its polar factor) or `none` (no correction is needed: Adafactor scales updates with the weights)."""

_RULES: dict[str, Rule] = {
    "SGD": "sgd",
    "SGDW": "sgd",
    "Adafactor": "none",
    **dict.fromkeys(
        ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Lion", "NAdamW", "Adopt"), "normalised"
    ),
}
_DECOUPLED = ("AdamW", "SGDW", "NAdamW", "Lion", "AdamWLegacy")


def apply_corrections(
    optimizer: Optimizer,
    program: Program,
    factors: Mapping[str, RateFactors],
    *,
    rule: Rule | None = None,
) -> None:
    """Multiplies learning rate, `initial_lr`, weight decay and eps by factors, in place.

    Parameters of a group that have different factors move to new groups, appended after the others, with the same
    options otherwise. A learning-rate scheduler counts groups, so create a new one (`initial_lr` is corrected too).

    Args:
        optimizer: an optimizer of the grown program.
        program: the grown program.
        factors: the factors by parameter name: `progc.lift.rates.corrections(plan.lifts)`; other parameters keep
            their rates.
        rule: how the optimizer's update depends on the gradient; by default determined from its class.

    Raises:
        InputError: no rule is known for this optimizer, or it holds parameters that the program does not have.
    """
    commit(optimizer, program, split(optimizer, settled(holdings(optimizer, program), program), factors, rule))


def split(
    optimizer: Optimizer, held: Holdings, factors: Mapping[str, RateFactors], rule: Rule | None = None
) -> Holdings:
    """Returns `held` with groups split by their factors; the first part of a group keeps its index.

    Raises:
        InputError: no rule is known for this optimizer.
    """
    options = list(held.options)
    groups: list[list[str]] = [[] for _ in held.groups]
    parked: dict[str, int] = {}
    for index, names in enumerate(held.groups):
        chosen = rule or _rule(optimizer, held.options[index])
        waiting = [name for name, group in held.parked.items() if group == index]
        parts: dict[tuple[str, ...], list[str]] = {}
        values: dict[tuple[str, ...], tuple[float, float, float]] = {}
        for name in (*names, *waiting):
            own = _chosen(factors.get(name, RateFactors()), chosen, _decoupled(optimizer, held.options[index]))
            key = tuple(f"{value:.12g}" for value in own)  # products of factors differ by rounding
            parts.setdefault(key, []).append(name)
            values[key] = own
        first = next((key for key in parts if set(key) == {"1"}), next(iter(parts), None))
        for key, members in parts.items():
            place = index
            if key != first:
                place = len(options)
                options.append(held.options[index])
                groups.append([])
            options[place] = _multiplied(held.options[index], *values[key])
            groups[place] = [name for name in members if name not in held.parked]
            parked.update({name: place for name in members if name in held.parked})
    return Holdings(options, groups, parked, held.state)


def _rule(optimizer: Optimizer, options: Mapping[str, Any]) -> Rule:
    name = type(optimizer).__name__
    if name == "Muon" and options.get("adjust_lr_fn") == "spectral_unclamped":
        return "muon"
    found = _RULES.get(name)
    if found is None:
        more = " other than adjust_lr_fn='spectral_unclamped'" if name == "Muon" else ""
        raise InputError(
            f"learning rates: no rule is known for {name}{more}; pass rule='normalised', 'sgd' or 'none' to "
            "apply_corrections, or do not correct them"
        )
    return found


def _decoupled(optimizer: Optimizer, options: Mapping[str, Any]) -> bool:
    return bool(options.get("decoupled_weight_decay", type(optimizer).__name__ in _DECOUPLED))


def _chosen(factors: RateFactors, rule: Rule, decoupled: bool) -> tuple[float, float, float]:
    """Factors of learning rate, weight decay and eps.

    Decoupled decay subtracts lr * decay * w from a weight: lr * decay must stay. Coupled decay adds decay * w to the
    gradient. The gradient is multiplied by b and the weight by a, so decay is multiplied by b / a.
    """
    if rule == "none":
        return 1.0, 1.0, 1.0
    if rule == "muon":
        # The polar factor of a tiled matrix is the tiled polar factor over the root of the number of tiles; with the
        # root of rows over columns that the optimizer multiplies by, an update shrinks as the columns grew.
        lr = factors.lr * factors.columns
        return lr, 1.0 / lr, 1.0
    lr = factors.lr_sgd if rule == "sgd" else factors.lr
    return lr, 1.0 / lr if decoupled else 1.0 / factors.lr_sgd, factors.eps


def _multiplied(options: Mapping[str, Any], lr: float, decay: float, eps: float) -> dict[str, Any]:
    changed = dict(options)
    for key, factor in (("lr", lr), ("initial_lr", lr), ("weight_decay", decay), ("eps", eps)):
        value = changed.get(key)
        if isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool) and factor != 1.0:
            changed[key] = value * factor
    return changed
