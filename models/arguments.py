"""Arguments of a model's constructor in the text of a source: `timm:NAME?num_classes=10&img_size=64`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError, did_you_mean
from progc.files.values import literal

_QUERY = re.compile(r"(?P<source>.+?)\?(?P<query>[A-Za-z_]\w*=.*)", re.DOTALL)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Returns the text of a source without arguments, and the arguments by name.

    Raises:
        InputError: an argument has no name or no value, or is given twice.
    """
    match = _QUERY.fullmatch(text)
    if match is None:
        return text, {}
    found: dict[str, Any] = {}
    for part in match["query"].split("&"):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"`{text}`: expected arguments such as ?num_classes=10&img_size=64, got `{part}`")
        if name in found:
            raise InputError(f"`{text}` gives `{name}` twice; give it once")
        found[name] = literal(value)
    return match["source"], found


def joined(text: str, more: Mapping[str, Any]) -> str:
    """Returns the text of a source with further arguments.

    Raises:
        InputError: the text has such an argument already, or a name or value cannot be written.
    """
    if not more:
        return text
    plain, args = split(text)
    for name, value in more.items():
        if name in args:
            raise InputError(f"`{text}` gives `{name}` already; give it once")
        if not name.isidentifier() or "&" in repr(value):
            raise InputError(f"argument {name}={value!r} of {plain}: expected a name, and a value without `&`")
    return plain + "?" + "&".join(f"{name}={_text(value)}" for name, value in (args | dict(more)).items())


def _text(value: Any) -> str:
    """A value as `literal` reads it again."""
    plain = str(value)
    return plain if isinstance(value, str) and literal(plain) == value else repr(value)


def checked(where: str, args: Mapping[str, Any], known: Mapping[str, Any] | list[str]) -> None:
    """Checks names of arguments.

    Raises:
        InputError: an unknown name.
    """
    for name in args:
        if name not in known:
            meant = did_you_mean(name, known)
            raise InputError(f"{where} takes no argument `{name}`{meant or ';'} check its constructor")
