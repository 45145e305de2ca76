"""Reads groups and state of an optimizer by parameter name of a program, and writes them back.

A frozen parameter leaves the groups of the optimizer. Its state is parked in `optimizer.state` under a text key, which
torch's `state_dict` and `load_state_dict` preserve, together with the index of its group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from progc.errors import InputError
from progc.ir.program import Program
from progc.lift.moments import MOMENTS

Optimizers = Optimizer | Sequence[Optimizer] | None
"""Types that `optimizer=` accepts."""

PARKED = "progc.parked"
"""Key of the state of frozen parameters in `optimizer.state`."""

_NOT_OPTIONS = ("params", "param_names")


@dataclasses.dataclass
class Holdings:
    """An optimizer's parameters, options and state, by name.

    Attributes:
        options: options of each group, such as learning rate and weight decay.
        groups: parameter names of each group.
        parked: names of frozen parameters, with the index of their group.
        state: state by name, parked parameters included; tensors are not copied.
    """

    options: list[dict[str, Any]]
    groups: list[list[str]]
    parked: dict[str, int]
    state: dict[str, dict[str, Any]]

    @property
    def homes(self) -> dict[str, int]:
        """The group of every parameter, parked ones included."""
        return {name: index for index, names in enumerate(self.groups) for name in names} | self.parked


def listed(optimizers: Optimizers) -> list[Optimizer]:
    """Returns the optimizers as a list.

    Raises:
        InputError: an item is not a torch optimizer.
    """
    found: list[Any] = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
    for item in found:
        if not isinstance(item, Optimizer):
            raise InputError(f"optimizer: expected a torch optimizer or a list of them, found {type(item).__name__}")
    return found


def holdings(optimizer: Optimizer, program: Program) -> Holdings:
    """Reads an optimizer over the parameter objects of `program`.

    Raises:
        InputError: it holds parameters that the program does not have; the message counts them.
    """
    names = {id(tensor): name for name, tensor in program.parameters()}
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    strange = [tensor for tensor in held if id(tensor) not in names]
    if strange:
        raise InputError(
            f"{len(strange)} of {len(held)} parameters of the optimizer are not in the program, the first of shape "
            f"{list(strange[0].shape)}; build the optimizer over the parameters of program.module() or of the captured "
            "model, and train others with another optimizer"
        )
    parked = optimizer.state.get(PARKED, {})  # type: ignore[call-overload]
    own = {names[id(tensor)]: optimizer.state[tensor] for tensor in held if tensor in optimizer.state}
    return Holdings(
        options=[{key: v for key, v in group.items() if key not in _NOT_OPTIONS} for group in optimizer.param_groups],
        groups=[[names[id(tensor)] for tensor in group["params"]] for group in optimizer.param_groups],
        parked=dict(parked.get("groups", {})),
        state={**parked.get("state", {}), **own},
    )


def settled(found: Holdings, program: Program) -> Holdings:
    """Returns the holdings with frozen parameters of `program` parked, and all others in their groups.

    Groups keep their order; a group in the order of the program stays so when parameters join it.

    Raises:
        InputError: a moment does not have the shape of its parameter, or a group does not exist.
    """
    parameters = dict(program.parameters())
    homes = found.homes
    for name in (*homes, *found.state):
        if name not in parameters:
            raise InputError(f"optimizer state for {name}: the program has no such parameter; leave it out")
    for name, group in homes.items():
        if not 0 <= group < len(found.options):
            raise InputError(f"{name} belongs to parameter group {group}; the optimizer has {len(found.options)}")
    for name, own in found.state.items():
        for key, value in own.items():
            if key in MOMENTS and isinstance(value, torch.Tensor) and value.shape != parameters[name].shape:
                raise InputError(
                    f"optimizer state `{key}` of {name}: expected shape {list(parameters[name].shape)}, found "
                    f"{list(value.shape)}; map it with `plan.moments`"
                )
    groups = [[name for name in names if parameters[name].requires_grad] for names in found.groups]
    back = [name for name in parameters if name in found.parked and parameters[name].requires_grad]
    for name in back:
        groups[found.parked[name]].append(name)
    order = {name: index for index, name in enumerate(parameters)}
    for index, names in enumerate(groups):
        joined = any(found.parked.get(name) == index for name in names)
        if joined and in_order([n for n in names if n not in found.parked], order):
            names.sort(key=order.__getitem__)
    parked = {name: home for name, home in homes.items() if not parameters[name].requires_grad}
    return Holdings(found.options, groups, parked, found.state)


def in_order(names: Sequence[str], order: Mapping[str, int]) -> bool:
    """Whether the names are sorted by `order`."""
    places = [order[name] for name in names]
    return places == sorted(places)


def commit(optimizer: Optimizer, program: Program, found: Holdings) -> None:
    """Writes holdings into the optimizer; cannot fail. Its group dicts and parameter lists stay the same objects."""
    tensors = program.tensors
    groups = optimizer.param_groups
    del groups[len(found.options) :]
    for index, (options, names) in enumerate(zip(found.options, found.groups, strict=True)):
        if index == len(groups):
            named = any("param_names" in group for group in groups)
            groups.append({"params": [], **({"param_names": []} if named else {})})
        group = groups[index]
        group.update(options)
        group["params"][:] = [tensors[name] for name in names]
        if "param_names" in group:
            group["param_names"] = list(names)
    foreign = {key: value for key, value in optimizer.state.items() if isinstance(key, str) and key != PARKED}
    optimizer.state.clear()
    for name in (name for names in found.groups for name in names):
        if name in found.state:
            optimizer.state[tensors[name]] = found.state[name]
    optimizer.state.update(foreign)
    if found.parked:
        # Some optimizers read `step` of the first state they find.
        optimizer.state[PARKED] = {  # type: ignore[index]
            "step": torch.tensor(0.0),
            "groups": dict(found.parked),
            "state": {name: found.state[name] for name in found.parked if name in found.state},
        }
