"""Tables of classes by name, ours and those of installed packages: passes, proxies. Explicit, and imported when asked.

A table maps a name to `"module:Class"`; packages outside add to it through an entry point group.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from progc.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from progc.pipeline.base import Pass


@dataclasses.dataclass(frozen=True)
class NamedClasses:
    """One table.

    Attributes:
        kind, kinds: what the classes are, in messages: `pass`, `passes`.
        own: name to `"module:Class"`.
        group: entry point group of others.
    """

    kind: str
    kinds: str
    own: Mapping[str, str]
    group: str

    @cached_property
    def table(self) -> Mapping[str, str]:
        """Name to place, ours first.

        Raises:
            InputError: two classes have the same name.
        """
        points = importlib.metadata.entry_points(group=self.group)
        return self.merged((point.name, point.value) for point in points)

    def merged(self, others: Iterable[tuple[str, str]]) -> dict[str, str]:
        """One table of our own classes and `others`.

        Raises:
            InputError: a name occurs twice; both places are named.
        """
        table = dict(self.own)
        for name, place in others:
            if name in table and table[name] != place:
                raise InputError(
                    f"two {self.kinds} are called `{name}`: {table[name]} and {place}; rename or uninstall one"
                )
            table[name] = place
        return table

    def load(self, name: str) -> object:
        """What stands at the place of `name`; imports its module.

        Raises:
            InputError: no such name (with a suggestion), a duplicate, or a place that cannot be imported.
        """
        if name not in self.table:
            hint = did_you_mean(name, self.table) or f"; {self.kinds} are {', '.join(self.table)}"
            raise InputError(f"there is no {self.kind} `{name}`{hint}")
        place = self.table[name]
        module, _, attribute = place.partition(":")
        try:
            found: object = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a package of somebody's fails when it is imported
            known = isinstance(error, (ImportError, AttributeError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            raise InputError(f"{self.kind} `{name}` cannot be loaded from {place}: {reason}") from error
        return found

    def check_name(self, name: str, own: str) -> None:
        """Refuses a class that calls itself something else.

        Raises:
            InputError: `own`, the class's name for itself, is not `name`.
        """
        if own != name:
            raise InputError(f"{self.kind} `{name}` loads {self.table[name]}, which calls itself `{own}`; use one name")


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
