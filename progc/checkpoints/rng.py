"""Saves the random states of a process: torch (CPU and accelerators), Python, numpy, and the user's generators."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from progc.errors import InputError
from progc.ir.random_state import accelerator_states, set_accelerator_state

_WORDS = 624  # of the Mersenne Twister
_POSITION = struct.Struct("<QiiQ")  # how torch's state begins: seed, words left, seeded, next word


def rng_state(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """Returns the state of all generators, with tensors on the CPU.

    Args:
        generators: the user's generators by name.

    Raises:
        InputError: the global generator of numpy is not MT19937.
    """
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    if numpy["bit_generator"] != "MT19937":
        raise InputError(f"numpy's global generator: expected the default MT19937, got {numpy['bit_generator']}")
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "accelerator": _accelerator_state(),
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def set_rng_state(state: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    """Restores what `rng_state` returned, for generators of the same names.

    The state of another kind of accelerator is ignored. If the number of devices has changed, the current device takes
    the state of the device that was current.

    Args:
        state: what `rng_state` returned.
        generators: the user's generators by name.

    Raises:
        Exception: the state is invalid; each library raises its own type.
    """
    numpy = state["numpy"]
    keys = numpy["key"].numpy().astype(np.uint32)
    if keys.shape != (_WORDS,) or not 0 <= numpy["pos"] <= _WORDS:  # numpy does not check
        raise ValueError("invalid state of numpy")
    for name, generator in generators.items():
        generator.set_state(_checked(state["generators"][name], generator.device))
    torch.set_rng_state(_checked(state["torch"], torch.device("cpu")))
    random.setstate(state["python"])
    np.random.set_state(("MT19937", keys, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    if state["accelerator"] is not None:
        _set_accelerator_state(state["accelerator"])


def fresh_rng(state: Mapping[str, Any], rank: int, generators: Mapping[str, torch.Generator]) -> None:
    """Seeds all generators of a rank that did not exist when `state` (of rank 0) was saved.

    The seeds depend on `state` and `rank` only, and differ between ranks.
    """
    words = [*state["torch"].numpy().view(np.uint32).tolist(), *state["python"][1]]
    sequence = np.random.SeedSequence(words, spawn_key=(rank,))
    for_torch, for_python, for_numpy, *own = sequence.generate_state(3 + len(generators), np.uint64).tolist()
    torch.manual_seed(for_torch >> 1)
    random.seed(for_python)
    np.random.seed(for_numpy % 2**32)
    for generator, seed in zip(generators.values(), own, strict=True):
        generator.manual_seed(seed >> 1)


def _accelerator_state() -> dict[str, Any] | None:
    states = accelerator_states()  # None if nothing was drawn on it: reading the state would initialise it
    if states is None:
        return None
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return {"type": kind.type, "current": torch.accelerator.current_device_index(), "states": states}


def _set_accelerator_state(state: Mapping[str, Any]) -> None:
    found = torch.accelerator.current_accelerator(check_available=True) if torch.accelerator.is_available() else None
    if found is None or found.type != state["type"]:
        return
    states = state["states"]
    if len(states) == torch.accelerator.device_count():
        for index, value in enumerate(states):
            set_accelerator_state(value, index)
    # Set last, so that it applies if the process has moved to another device.
    set_accelerator_state(states[state["current"]], torch.accelerator.current_device_index())


def _checked(state: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A validated copy of a state: torch reads from the start of the storage, whatever view it is given.

    Raises:
        ValueError: the state is invalid; torch accepts some states with which it reads beyond its 624 words.
    """
    state = state.clone()
    if device.type == "cpu":
        like = torch.get_rng_state()
        if state.shape != like.shape or state.dtype != like.dtype:
            raise ValueError("a state of torch has the wrong size")
        _, left, seeded, following = _POSITION.unpack(state[: _POSITION.size].numpy().tobytes())
        if seeded != 1 or not 1 <= left <= _WORDS or not 0 <= following <= _WORDS + 1 - left:
            raise ValueError("invalid state of torch")
    return state
