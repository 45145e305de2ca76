"""Values as users write them on a command line: `key=value` with numbers, words, lists and text."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from progc.errors import InputError


def key_values(texts: Sequence[str], *, example: str, option: str = "--set") -> dict[str, str]:
    """Splits the texts `key=value` of an option that may be repeated.

    Args:
        texts: what the user gives.
        example: what the error suggests, such as `train.lr=0.001`.
        option: the option, for the error.

    Raises:
        InputError: a text has no `=` or no key, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise InputError(f"{option} {text}: expected key=value, such as {option} {example}")
        if key in found:
            raise InputError(f"{option} gives `{key}` twice; give it once")
        found[key] = value
    return found


def literal(text: str) -> Any:
    """Returns the value of a text: `true`, `false`, `none` (in any case), a Python literal, else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
