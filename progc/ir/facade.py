"""What a `Program` offers as attributes although packages above it compute it.

`progc/__init__` fills these in, so that `program.axes`, `program.chains` and `program.module()` work for users while
nothing in `ir` imports what stands above it. Inside progc, `axes_of`, `chains_of` and `ProgramModule` are called
directly, which keeps their types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _unset(program: Any) -> Any:
    raise AssertionError("progc/__init__ sets the facade of Program")


AXES: Callable[[Any], Any] = _unset
CHAINS: Callable[[Any], Any] = _unset
MODULE: Callable[[Any], Any] = _unset
