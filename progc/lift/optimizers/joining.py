"""Parameters that begin to train and that no optimizer holds: they join a parameter group.

Most fine-tuning scripts make the optimizer of what trains at first. A layer that is unfrozen later would get gradients
and never change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch.optim import Optimizer

from progc.errors import InputError, first_of
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.lift.optimizers.holdings import Holdings, in_order

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_SHOWN = ("lr", "weight_decay")


def join(
    optimizers: Sequence[Optimizer],
    held: Sequence[Holdings],
    before: Program,
    after: Program,
    lifts: Sequence[Lift],
) -> list[str]:
    """Adds parameters that train only now, and that no optimizer holds, to groups of `held`, in place.

    A parameter that trained before and was in no optimizer was left out on purpose, and stays out. With several groups,
    a parameter joins the one that holds the parameters of its name in other blocks, or else the only one whose
    parameters have as many dims (at most one, or more), as where biases have no weight decay.

    Args:
        optimizers: the optimizers.
        held: what each of them holds, by names of `after`.
        before, after: the programs before and after.
        lifts: the lifts between them.

    Returns:
        A sentence for every group that parameters join.

    Raises:
        InputError: it cannot be told which group a parameter belongs to.
    """
    origins = _origins(before, lifts)
    trained = {name for name, tensor in before.parameters() if tensor.requires_grad}
    known = {name for own in held for name in own.homes}
    parameters = dict(after.parameters())
    new = [
        name for name, tensor in parameters.items()
        if tensor.requires_grad and name not in known and name in origins and origins[name] not in trained
    ]  # fmt: skip
    if not new:
        return []
    dims = {name: tensor.dim() for name, tensor in parameters.items()}
    chosen: dict[tuple[int, int], list[str]] = {}
    for name in new:
        chosen.setdefault(_place(name, held, dims), []).append(name)
    order = {name: index for index, name in enumerate(parameters)}
    notes = []
    for (number, index), names in sorted(chosen.items()):
        group = held[number].groups[index]
        sort = in_order(group, order)
        group += names
        if sort:
            group.sort(key=order.__getitem__)
        options = held[number].options[index]
        shown = ", ".join(f"{key} {options[key]:g}" for key in _SHOWN if isinstance(options.get(key), (int, float)))
        which = f" of optimizer {number}" if len(held) > 1 else ""
        notes.append(
            f"{first_of(names)} train now and were in no parameter group: they join group {index}{which} of "
            f"{type(optimizers[number]).__name__} ({shown})"
        )
    return notes


def _place(name: str, held: Sequence[Holdings], dims: Mapping[str, int]) -> tuple[int, int]:
    """Optimizer and group that a parameter belongs to."""
    groups = [(number, index) for number, own in enumerate(held) for index in range(len(own.groups))]
    if len(groups) == 1:
        return groups[0]
    members = {place: [n for n, index in held[place[0]].homes.items() if index == place[1]] for place in groups}
    pattern = _NUMBER.sub("#", name)
    alike = [place for place in groups if any(_NUMBER.sub("#", other) == pattern for other in members[place])]
    if len(alike) != 1:
        vector = dims[name] <= 1
        alike = [place for place in groups if members[place] and all((dims[n] <= 1) is vector for n in members[place])]
    if len(alike) != 1:
        raise InputError(
            f"{name} trains now and is in none of the {len(groups)} parameter groups of the optimizer; make the "
            "optimizer of all parameters, frozen ones too, so that it is known which group each belongs to"
        )
    return alike[0]


def _origins(before: Program, lifts: Sequence[Lift]) -> dict[str, str]:
    """The parameter of `before` that each parameter comes from, by its name after the lifts."""
    origin = {name: before.tied.get(name, name) for name in before.tensors}
    for lift in lifts:
        entries = {entry.name: origin[entry.source] for entry in lift.tensors if entry.source in origin}
        kept = {name: own for name, own in origin.items() if name not in entries and name not in lift.removed}
        origin = kept | entries
    return origin
