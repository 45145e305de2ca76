"""The global random number generators of a process: torch (CPU and accelerator), Python and numpy."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import operator
import random
from collections.abc import Callable, Iterator
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
    for each in GLOBAL_GENERATORS:
        each.seed(seed)


@dataclasses.dataclass(frozen=True)
class GlobalGenerator:
    """A global generator on the CPU.

    Attributes:
        name: name of the library.
        seed: seeds it with an int.
        state: returns its state.
        restore: sets it to a state.
        equal: whether two states are equal.
    """

    name: str
    seed: Callable[[int], object]
    state: Callable[[], Any]
    restore: Callable[[Any], object]
    equal: Callable[[Any, Any], bool]

    def same(self, state: Any) -> bool:
        """Returns whether it still has this state, so that nothing was drawn since."""
        return self.equal(state, self.state())


class _NumpyStates:
    """The state of numpy's generator, read again only where its words in memory have changed.

    numpy takes 50 us to return its 624 words; their bytes are compared in 1 us. The layout of the words (the key, then
    the position) is not documented, so they are compared with what numpy returned before they are relied on.
    """

    def __init__(self) -> None:
        self._words: bytes | None = None
        self._state: Any = None

    def __call__(self) -> Any:
        """Returns the state."""
        words = self._in_memory()
        if words is None or words != self._words:
            self._state = np.random.get_state(legacy=False)
            known = self._state["state"]
            # Where the second number of a pair is left over, drawing it changes no word.
            rely = words is not None and not self._state["has_gauss"]
            rely = rely and words == np.append(known["key"], known["pos"]).astype(np.uint32).tobytes()
            self._words = words if rely else None
        return self._state

    @staticmethod
    def _in_memory() -> bytes | None:
        generator = np.random.get_bit_generator() if hasattr(np.random, "get_bit_generator") else None  # numpy 1.24
        if type(generator) is not np.random.MT19937:
            return None
        return ctypes.string_at(generator.ctypes.state_address, 4 * 625)


def _torch_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    # By their bytes: torch.equal would not run under a mode for fake tensors.
    first, second = (ctypes.string_at(state.data_ptr(), state.nbytes) for state in (one, other))
    return first == second


def _numpy_equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    rest = "bit_generator", "has_gauss", "gauss"
    if one["state"]["pos"] != other["state"]["pos"] or any(one[name] != other[name] for name in rest):
        return False
    return bool((one["state"]["key"] == other["state"]["key"]).all())


class _Asked:
    """Stands for torch's generator in the functions of `torch.random`, and remembers whether one asked for its seed."""

    def __init__(self, found: list[str]) -> None:
        self._found = found

    def __getattr__(self, name: str) -> Any:
        if name in ("initial_seed", "get_state"):
            self._found.append(name)
        return getattr(torch.default_generator, name)


@contextlib.contextmanager
def asked_for_seed() -> Iterator[list[str]]:
    """Yields a list that is not empty once `torch.initial_seed` or `torch.get_rng_state` was called inside.

    Such a call leaves the generator as it is, so its state does not tell.
    """
    found: list[str] = []
    functions: Any = torch.random
    before = functions.default_generator
    functions.default_generator = _Asked(found)
    try:
        yield found
    finally:
        functions.default_generator = before


TORCH = "torch"
GLOBAL_GENERATORS = (
    GlobalGenerator(
        TORCH, lambda seed: torch.default_generator.manual_seed(seed % 2**64),
        torch.default_generator.get_state, torch.default_generator.set_state, _torch_equal,
    ),
    GlobalGenerator("python", random.seed, random.getstate, random.setstate, operator.eq),
    GlobalGenerator(
        "numpy", lambda seed: np.random.seed(seed % 2**32), _NumpyStates(), np.random.set_state, _numpy_equal,
    ),
)  # fmt: skip


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
