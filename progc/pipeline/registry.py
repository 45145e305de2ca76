"""Tables of classes by name (passes, proxies): those of progc and those of other installed packages.

A table maps a name to `"module:Class"`; the module is imported when the class is loaded. Other packages add to a table
through an entry point group.
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
    """A table of classes by name.

    Attributes:
        kind, kinds: what the classes are called in messages: `pass`, `passes`.
        own: name to `"module:Class"` of the classes of progc.
        group: entry point group of other packages.
    """

    kind: str
    kinds: str
    own: Mapping[str, str]
    group: str

    @cached_property
    def table(self) -> Mapping[str, str]:
        """Name to `"module:Class"`, those of progc first.

        Raises:
            InputError: two classes have the same name.
        """
        points = importlib.metadata.entry_points(group=self.group)
        return self.merged((point.name, point.value) for point in points)

    def merged(self, others: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Returns the table of progc's own classes and `others`.

        Raises:
            InputError: two different classes have the same name.
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
        """Imports and returns the object called `name`.

        Raises:
            InputError: the name is unknown or occurs twice, or the object cannot be imported.
        """
        if name not in self.table:
            hint = did_you_mean(name, self.table) or f"; {self.kinds} are {', '.join(self.table)}"
            raise InputError(f"there is no {self.kind} `{name}`{hint}")
        place = self.table[name]
        module, _, attribute = place.partition(":")
        try:
            found: object = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # the import of another package fails
            known = isinstance(error, (ImportError, AttributeError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            raise InputError(f"{self.kind} `{name}` cannot be loaded from {place}: {reason}") from error
        return found

    def check_name(self, name: str, own: str) -> None:
        """Checks that a class has the name under which it is registered.

        Raises:
            InputError: `own`, the `name` attribute of the class, is not `name`.
        """
        if own != name:
            raise InputError(
                f"{self.kind} `{name}` is {self.table[name]}, whose own name is `{own}`; use the same name for both"
            )


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
"""Entry point group through which other packages add passes."""

_CLASSES = NamedClasses("pass", "passes", PASSES, ENTRY_POINTS)


def names() -> list[str]:
    """Returns the names of all passes: those of progc, then those of other installed packages.

    Raises:
        InputError: two passes have the same name.
    """
    return list(_CLASSES.table)


def load_pass(name: str) -> type[Pass]:
    """Imports and returns the pass class called `name`.

    Raises:
        InputError: the name is unknown or occurs twice, the class cannot be imported, or it is not a valid pass.
    """
    found = _CLASSES.load(name)
    place = _CLASSES.table[name]
    from progc.pipeline.base import Pass

    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise InputError(f"pass `{name}`: expected a subclass of progc.Pass, got {place}; derive it from progc.Pass")
    _CLASSES.check_name(name, found.name)
    try:
        found.options()
    except AssertionError as error:
        raise InputError(f"pass `{name}` of {place}: {error}") from error
    return found
