"""The global random number generators of a process: torch (CPU and accelerator), Python and numpy."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_states(*, accelerator: bool = True) -> Iterator[None]:
    """Restores the states of all global generators at the end, also after an error.

    Args:
        accelerator: whether those of an accelerator that is in use are restored too.
    """
    cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    devices = accelerator_states() if accelerator else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)
        for index, state in enumerate(devices or ()):
            set_accelerator_state(state, index)


@contextlib.contextmanager
def seeded(seed: int, *, accelerator: bool = True) -> Iterator[None]:
    """Seeds all global generators inside, and restores their states at the end.

    An accelerator that is not in use yet is left alone: its seed would outlive the block.
    """
    with kept_random_states(accelerator=accelerator):
        seed_cpu(seed)
        if accelerator and (module := _in_use()) is not None:
            (getattr(module, "manual_seed_all", None) or module.manual_seed)(seed % 2**64)
        yield


def seed_everything(seed: int) -> None:
    """Seeds all global generators, those of accelerators that are not in use yet included."""
    torch.manual_seed(seed % 2**64)
    seed_cpu(seed)


def seed_cpu(seed: int) -> None:
    """Seeds the global generators of torch on the CPU, of Python and of numpy."""
    torch.default_generator.manual_seed(seed % 2**64)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def accelerator_states() -> list[torch.Tensor] | None:
    """Returns the state of the generator of each device, on the CPU; None if no accelerator is in use."""
    module = _in_use()
    return None if module is None else [_state(module, index) for index in range(torch.accelerator.device_count())]


def set_accelerator_state(state: torch.Tensor, index: int) -> None:
    """Sets the generator of one device of the accelerator to a state that `accelerator_states` returned."""
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    module: Any = torch.get_device_module(accelerator)
    state = state.clone()
    try:
        module.set_rng_state(state, index)
    except TypeError:  # a kind with one device takes no index
        module.set_rng_state(state)


def _state(module: Any, index: int) -> torch.Tensor:
    try:
        state: torch.Tensor = module.get_rng_state(index)
    except TypeError:  # as above
        state = module.get_rng_state()
    return state.cpu()


def _in_use() -> Any:
    """The torch module of the accelerator, such as `torch.cuda`; None where nothing has started it yet."""
    found = torch.accelerator.current_accelerator(check_available=True) if torch.accelerator.is_available() else None
    if found is None:
        return None
    module: Any = torch.get_device_module(found)
    return module if getattr(module, "is_initialized", lambda: True)() else None
