"""Optimizer state by parameter name, as data: what torch's `state_dict` says by position, and parked state too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from progc.errors import InputError
from progc.ir.program import Program
from progc.lift.optimizers.holdings import Holdings, commit, holdings, settled


def optimizer_state(optimizer: Optimizer, program: Program) -> dict[str, Any]:
    """What an optimizer of `program` holds, by name; tensors are its own.

    Returns:
        `groups`: `[{"names": [...], "options": {"lr": ...}}, ...]`; `parked`: names of frozen parameters to their
        group; `state`: `{"head.weight": {"step": ..., "exp_avg": ...}}`, parked parameters included.

    Raises:
        InputError: it holds parameters that the program does not have.
    """
    found = holdings(optimizer, program)
    return {
        "groups": [
            {"names": list(names), "options": dict(options)}
            for names, options in zip(found.groups, found.options, strict=True)
        ],
        "parked": dict(found.parked),
        "state": {name: dict(own) for name, own in found.state.items()},
    }


def load_optimizer_state(optimizer: Optimizer, program: Program, saved: Mapping[str, Any]) -> None:
    """Puts back what `optimizer_state` gave; tensors are copied, and the optimizer's groups become the saved ones.

    Parameters that are frozen by now are parked, parked ones that train again return to their group: a state may be
    saved before and loaded after a change of what is trained.

    Args:
        optimizer: of the same class, over some or all parameters of `program`, grouped in any way.

    Raises:
        InputError: not what `optimizer_state` gives, a name that the program does not have, a parameter of the
            optimizer that nothing was saved for, or a moment of another shape. Nothing is changed then.
    """
    if not {"groups", "parked", "state"} <= saved.keys():
        raise InputError(
            f"optimizer state: expected the keys groups, parked and state, found {', '.join(map(str, saved))}; give "
            "what optimizer_state returned (torch's own state_dict goes to optimizer.load_state_dict)"
        )
    present = holdings(optimizer, program)
    groups = [list(group["names"]) for group in saved["groups"]]
    options = []
    for index, group in enumerate(saved["groups"]):
        base = present.options[index] if index < len(present.options) else optimizer.defaults
        options.append({**base, **group["options"]})
    found = settled(Holdings(options, groups, dict(saved["parked"]), dict(saved["state"])), program)
    homes = found.homes
    left = [name for name in present.homes if name not in homes]
    if left:
        raise InputError(
            f"optimizer state: nothing was saved for {left[0]} ({len(left)} parameters of the optimizer); load it into "
            "an optimizer of the parameters it was saved from"
        )
    for name, own in found.state.items():
        if name not in homes:
            raise InputError(f"optimizer state for {name}: no group holds it; leave it out")
        here = program.tensors[name].device
        device = here if any(options[homes[name]].get(key) for key in ("capturable", "fused")) else None
        # Step counts stay where they are, unless the optimizer wants them beside the parameter.
        found.state[name] = {key: _copied(v, device if key == "step" else here) for key, v in own.items()}
    commit(optimizer, program, found)


def _copied(value: Any, device: torch.device | None) -> Any:
    return value.detach().to(device or value.device, copy=True) if isinstance(value, torch.Tensor) else value
