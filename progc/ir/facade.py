"""Attributes of `Program` that higher packages compute.

`progc/__init__` fills these in. So `program.axes`, `program.chains` and `program.module()` work for users, while `ir`
imports no package above it. Code inside progc calls `axes_of`, `chains_of` and `ProgramModule` directly, with types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _unset(program: Any) -> Any:
    raise AssertionError("progc/__init__ sets the facade of Program")


AXES: Callable[[Any], Any] = _unset
CHAINS: Callable[[Any], Any] = _unset
MODULE: Callable[[Any], Any] = _unset
