"""Re-points optimizers after growth: they train the parameters of the grown program and keep options and state.

Parameters are matched by identity, so any grouping is preserved: a grown tensor takes the place of its predecessor in
its group, a tensor of an inserted block joins the group of the tensor it was copied from, and removed tensors leave.
Moments are mapped by the lifts (progc/lift/moments.py). Everything is checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from progc.errors import InputError
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.lift.moments import refuse_lists
from progc.lift.optimizers.correcting import split
from progc.lift.optimizers.holdings import Holdings, Optimizers, commit, holdings, in_order, listed, settled
from progc.lift.optimizers.joining import join
from progc.lift.rates import corrections

_BY_SIZE = "min_dim_size_to_factor"


def repoint(
    optimizers: Optimizers,
    before: Program,
    after: Program,
    lifts: Sequence[Lift],
    *,
    correct_rates: bool = False,
    made: tuple[int, int] = (0, 0),
) -> tuple[str, ...]:
    """Makes optimizers of `before` train `after`, in place.

    Number, order and options of the groups stay, so a learning-rate scheduler continues; a group may become empty.
    Parameters that are frozen in `after` leave their group; their state is parked until they train again. Parameters
    that train only in `after` and are in no group join one (progc/lift/optimizers/joining.py). Gradients are not
    carried over: grow after a step.

    Args:
        optimizers: one or several optimizers over some or all parameter objects of `before` (or of `before.module()`).
        before: the program before growth.
        after: the grown program.
        lifts: the lifts of all steps from `before` to `after` that changed tensors, in order.
        correct_rates: whether to multiply learning rates, weight decay and eps by `progc.lift.rates.corrections`. This
            splits groups, so a learning-rate scheduler has to be created again.
        made: indices of the optimizer and the group for parameters without a predecessor.

    Returns:
        A sentence for every group that parameters join.

    Raises:
        InputError: an optimizer holds parameters that `before` does not have, state that cannot be mapped, or several
            groups of which a parameter that trains now might join any. Nothing is changed then.
    """
    found = listed(optimizers)
    old = [holdings(item, before) for item in found]
    _check_made(old, made)
    new = []
    for index, (item, held) in enumerate(zip(found, old, strict=True)):
        own = made[1] if index == made[0] else None
        new.append(settled(_moved(item, held, before, after, lifts, own), after))
    notes = join(found, new, before, after, lifts)
    if correct_rates:
        new = [split(item, held, corrections(lifts)) for item, held in zip(found, new, strict=True)]
    for item, held in zip(found, new, strict=True):
        commit(item, after, held)
    return tuple(notes)


def _check_made(old: Sequence[Holdings], made: tuple[int, int]) -> None:
    optimizer, group = made
    if not 0 <= optimizer < len(old) or not 0 <= group < len(old[optimizer].groups):
        raise InputError(f"made={made}: expected the index of an optimizer and of one of its groups, from 0")


def _moved(
    optimizer: Optimizer, held: Holdings, before: Program, after: Program, lifts: Sequence[Lift], made: int | None
) -> Holdings:
    """The holdings of the optimizer by names of `after`, before `settled`.

    Args:
        made: the group for parameters without a predecessor; None if they go to another optimizer.
    """
    homes, state = held.homes, held.state
    for alias, name in before.tied.items():
        if name in homes:
            homes[alias] = homes[name]
    known = set(before.tensors)
    for lift in lifts:
        entries = {entry.name: entry for entry in lift.tensors}
        _check_state(optimizer, held, state, lift)
        moments = lift.moments({entry.source: state[entry.source] for entry in lift.tensors if entry.source in state})
        state = _kept(state, entries, lift)
        state.update({name: moments[name] for name in entries if name in moments})
        earlier, homes = homes, _kept(homes, entries, lift)
        homes.update({n: earlier[entry.source] for n, entry in entries.items() if entry.source in earlier})
        homes.update({item.name: made for item in lift.made if made is not None})
        known = (known - lift.removed) | set(entries) | {item.name for item in lift.made}
    for alias, name in after.tied.items():
        if alias in homes:
            homes.setdefault(name, homes[alias])
    names = [name for name, _ in after.parameters()]
    lost = [name for name in names if name not in known]
    if lost:
        raise InputError(f"the optimizer cannot train {lost[0]}: no lift produces this parameter")
    # Frozen ones are still in a group here; `settled` parks them.
    groups = _ordered(held, before, names, {name: homes[name] for name in names if name in homes}, lifts)
    chosen = {name: own for name, own in state.items() if name in homes and name in set(names)}
    return Holdings(held.options, groups, {}, chosen)


def _kept(items: dict[str, Any], entries: dict[str, Any], lift: Lift) -> dict[str, Any]:
    return {name: item for name, item in items.items() if name not in entries and name not in lift.removed}


def _ordered(
    held: Holdings, before: Program, names: Sequence[str], homes: dict[str, int], lifts: Sequence[Lift]
) -> list[list[str]]:
    """Names by group: in the order of the program if the group was in that order, else next to their predecessors."""
    order = {name: index for index, (name, _) in enumerate(before.parameters())}
    origin = {name: name for name in order}
    for lift in lifts:
        entries = {entry.name: origin.get(entry.source, "") for entry in lift.tensors}
        origin = _kept(origin, entries, lift) | entries
    groups: list[list[str]] = []
    for index, old in enumerate(held.groups):
        own = [name for name in names if homes.get(name) == index]
        if not in_order(old, order):
            place = {name: position for position, name in enumerate(old)}
            own.sort(key=lambda name: place.get(origin.get(name, ""), len(place)))
        groups.append(own)
    return groups


def _check_state(optimizer: Optimizer, held: Holdings, state: dict[str, dict[str, Any]], lift: Lift) -> None:
    """Refuses state that growth cannot map.

    Some optimizers keep one state for all parameters. Some choose the kind of state by the size of a tensor, so after
    growth it would be of the wrong kind.
    """
    for name, own in state.items() if lift.tensors else ():
        refuse_lists(name, own)
    if any(_BY_SIZE in options for options in held.options):
        for entry in lift.tensors:
            if any(entry.dims) and entry.source in state:
                raise InputError(
                    f"{type(optimizer).__name__} chooses the state of {entry.source} by its size ({_BY_SIZE}), so "
                    "growth cannot map it; use torch.optim.Adafactor, or clear optimizer.state"
                )
