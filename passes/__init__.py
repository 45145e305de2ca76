"""Passes by name. The table is explicit and lazy: looking at names imports no pass, hence no torch.

Packages outside add passes through the entry point group `progc.passes` (`name = "module:Class"`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.suggestions import did_you_mean

if TYPE_CHECKING:
    from progc.passbase import Pass

PASSES: Mapping[str, str] = {
    "grow-depth": "progc.passes.grow_depth:GrowDepth",
    "grow-width": "progc.passes.grow_width:GrowWidth",
    "grow-resolution": "progc.passes.grow_resolution:GrowResolution",
    "shrink": "progc.passes.shrink:Shrink",
    "freeze": "progc.passes.freeze:Freeze",
    "inject-sid": "progc.passes.inject_sid:InjectSid",
    "remove-sid": "progc.passes.remove_sid:RemoveSid",
    "set-drop": "progc.passes.set_drop:SetDrop",
}

ENTRY_POINTS = "progc.passes"


def names() -> list[str]:
    """Names of all passes, ours first, then those of installed packages.

    Raises:
        InputError: two passes have the same name.
    """
    return list(_table())


def load_pass(name: str) -> type[Pass]:
    """The pass class called `name`; imports its module.

    Raises:
        InputError: no such pass (with a suggestion), a duplicate name, or a pass that cannot be imported.
    """
    table = _table()
    if name not in table:
        hint = did_you_mean(name, table) or f"; passes are {', '.join(table)}"
        raise InputError(f"there is no pass `{name}`{hint}")
    module, _, attribute = table[name].partition(":")
    try:
        found: type[Pass] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"pass `{name}` cannot be loaded from {table[name]}: {error}") from error
    except Exception as error:  # a package of somebody's fails when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"pass `{name}` cannot be loaded from {table[name]}: {reason}") from error
    if not (isinstance(found, type) and issubclass(found, _base())):
        raise InputError(f"pass `{name}` loads {table[name]}, which is no subclass of progc.passbase.Pass; derive it")
    if found.name != name:
        raise InputError(f"pass `{name}` loads {table[name]}, which calls itself `{found.name}`; use one name")
    try:
        found.options()
    except AssertionError as error:
        raise InputError(f"pass `{name}` of {table[name]}: {error}") from error
    return found


def _base() -> type[Pass]:
    from progc.passbase import Pass

    return Pass


@functools.cache
def _table() -> Mapping[str, str]:
    return merge(PASSES, ((point.name, point.value) for point in importlib.metadata.entry_points(group=ENTRY_POINTS)))


def merge(own: Mapping[str, str], others: Iterable[tuple[str, str]]) -> dict[str, str]:
    """One table of `own` passes and `others`.

    Raises:
        InputError: a name occurs twice; both places are named.
    """
    table = dict(own)
    for name, place in others:
        if name in table and table[name] != place:
            raise InputError(f"two passes are called `{name}`: {table[name]} and {place}; rename or uninstall one")
        table[name] = place
    return table
