"""Passes by name. The table is explicit and lazy: looking at names imports no pass, hence no torch.

Packages outside add passes through the entry point group `progc.passes` (`name = "module:Class"`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.pipeline.registry import NamedClasses

if TYPE_CHECKING:
    from progc.pipeline.base import Pass

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
_CLASSES = NamedClasses("pass", "passes", PASSES, ENTRY_POINTS)


def names() -> list[str]:
    """Names of all passes, ours first, then those of installed packages.

    Raises:
        InputError: two passes have the same name.
    """
    return list(_CLASSES.table)


def load_pass(name: str) -> type[Pass]:
    """The pass class called `name`; imports its module.

    Raises:
        InputError: no such pass (with a suggestion), a duplicate name, or a pass that cannot be imported.
    """
    found = _CLASSES.load(name)
    place = _CLASSES.table[name]
    from progc.pipeline.base import Pass

    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise InputError(f"pass `{name}` loads {place}, which is no subclass of progc.pipeline.base.Pass; derive it")
    _CLASSES.check_name(name, found.name)
    try:
        found.options()
    except AssertionError as error:
        raise InputError(f"pass `{name}` of {place}: {error}") from error
    return found
