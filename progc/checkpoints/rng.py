"""Random number generators of one process as data: torch (CPU and accelerators), Python, numpy, and the user's own."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from progc.errors import InputError

_WORDS = 624  # of the Mersenne Twister
_POSITION = struct.Struct("<QiiQ")  # how torch's state begins: seed, words left, seeded, next word


def rng_state(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """The state of all generators, tensors on the CPU.

    Args:
        generators: the user's own, by name.
    """
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    if numpy["bit_generator"] != "MT19937":
        raise InputError(f"numpy's global generator is {numpy['bit_generator']}; expected its default, MT19937")
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
    """Puts back what `rng_state` gave, for generators of the same names.

    A state of another kind of accelerator, or of more devices than there are now, is used as far as it goes: the
    current device takes the state of the device that was current.

    Raises:
        Exception: it is no state; each library refuses in its own way.
    """
    numpy = state["numpy"]
    keys = numpy["key"].numpy().astype(np.uint32)
    if keys.shape != (_WORDS,) or not 0 <= numpy["pos"] <= _WORDS:  # numpy itself does not look
        raise ValueError("a state of numpy that is none")
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
    found = torch.accelerator.current_accelerator(check_available=True) if torch.accelerator.is_available() else None
    if found is None:
        return None
    module: Any = torch.get_device_module(found)
    if hasattr(module, "is_initialized") and not module.is_initialized():
        return None  # nothing was drawn on it, and asking would start it
    return {
        "type": found.type,
        "current": torch.accelerator.current_device_index(),
        "states": [_get(module, index) for index in range(torch.accelerator.device_count())],
    }


def _set_accelerator_state(state: Mapping[str, Any]) -> None:
    found = torch.accelerator.current_accelerator(check_available=True) if torch.accelerator.is_available() else None
    if found is None or found.type != state["type"]:
        return
    module: Any = torch.get_device_module(found)
    states = state["states"]
    if len(states) == torch.accelerator.device_count():
        for index, value in enumerate(states):
            _set(module, value, index)
    # Last, so that it holds where a process has moved to another device.
    _set(module, states[state["current"]], torch.accelerator.current_device_index())


def _get(module: Any, index: int) -> torch.Tensor:
    try:
        value: torch.Tensor = module.get_rng_state(index)
    except TypeError:  # a kind with one device takes no index
        value = module.get_rng_state()
    return value.cpu()


def _set(module: Any, value: torch.Tensor, index: int) -> None:
    value = value.clone()
    try:
        module.set_rng_state(value, index)
    except TypeError:
        module.set_rng_state(value)


def _checked(state: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A state for torch, in memory of its own: torch reads from the start of the storage, whatever part it is given.

    Raises:
        ValueError: no state; some with which torch reads beyond its 624 words pass its own check.
    """
    state = state.clone()
    if device.type == "cpu":
        like = torch.get_rng_state()
        if state.shape != like.shape or state.dtype != like.dtype:
            raise ValueError("a state of torch of another size")
        _, left, seeded, following = _POSITION.unpack(state[: _POSITION.size].numpy().tobytes())
        if seeded != 1 or not 1 <= left <= _WORDS or not 0 <= following <= _WORDS + 1 - left:
            raise ValueError("a state of torch that is none")
    return state
