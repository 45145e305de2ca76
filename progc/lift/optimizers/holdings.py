"""What an optimizer holds, by the program's parameter names: read from it, and put back into it.

A frozen parameter leaves the optimizer's groups. Its state is parked: it lies in `optimizer.state` under a text key,
which torch's `state_dict` and `load_state_dict` pass through, with the number of the group it comes back to.
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
"""What `optimizer=` takes."""

PARKED = "progc.parked"
"""Key in `optimizer.state` of what frozen parameters left behind."""

_NOT_OPTIONS = ("params", "param_names")


@dataclasses.dataclass
class Holdings:
    """An optimizer's parameters, options and state, by name.

    Attributes:
        options: of each group: learning rate, decay and whatever else is there.
        groups: names of the parameters of each group.
        parked: names of frozen parameters, with the group that each belongs to.
        state: by name, parked ones too; tensors are the optimizer's own.
    """

    options: list[dict[str, Any]]
    groups: list[list[str]]
    parked: dict[str, int]
    state: dict[str, dict[str, Any]]

    @property
    def homes(self) -> dict[str, int]:
        """The group of every name, parked ones too."""
        return {name: index for index, names in enumerate(self.groups) for name in names} | self.parked


def listed(optimizers: Optimizers) -> list[Optimizer]:
    """The optimizers as a list.

    Raises:
        InputError: something else than optimizers of torch.
    """
    found: list[Any] = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
    for item in found:
        if not isinstance(item, Optimizer):
            raise InputError(f"optimizer: expected a torch optimizer or a list of them, found {type(item).__name__}")
    return found


def holdings(optimizer: Optimizer, program: Program) -> Holdings:
    """What the optimizer holds; its parameters are those of `program`, the very objects.

    Raises:
        InputError: it holds parameters that the program does not have; says how many and the shape of the first.
    """
    names = {id(tensor): name for name, tensor in program.parameters()}
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    strange = [tensor for tensor in held if id(tensor) not in names]
    if strange:
        raise InputError(
            f"the optimizer holds {len(strange)} of {len(held)} parameters that the program does not have, the first "
            f"of shape {list(strange[0].shape)}; build it over the parameters of program.module() or of the captured "
            "model, and leave out what is trained beside it"
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
    """The same with frozen parameters of `program` parked and all others in their groups.

    Groups keep the order they have; what joins one comes in the order of the program.

    Raises:
        InputError: a moment that has another shape than its parameter, or a group that is not there.
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
    """Whether the names stand as `order` numbers them."""
    places = [order[name] for name in names]
    return places == sorted(places)


def commit(optimizer: Optimizer, program: Program, found: Holdings) -> None:
    """Makes the optimizer hold this; cannot fail. Its group dicts and lists of parameters stay the same objects."""
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
        # Some optimizers ask the first state they meet for its step.
        optimizer.state[PARKED] = {  # type: ignore[index]
            "step": torch.tensor(0.0),
            "groups": dict(found.parked),
            "state": {name: found.state[name] for name in found.parked if name in found.state},
        }
