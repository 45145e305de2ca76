"""Sizes as text: `depth=12,width=768,heads=12` gives new sizes, `depth*2,width*1.5` gives factors.

A key is `depth`, `width`, `heads`, `head_dim`, `mlp`, `mlp_ratio`, or the name of an axis or a chain. Parsing does not
need a network; whether a network can have these sizes is decided later, from its axes and chains.

`PRESETS` holds sizes by name, which apply to the network of the user. ViT: Dosovitskiy et al. 2021, table 1 (tiny and
small: Touvron et al. 2021, table 1; the patch size of huge is not changed). DeiT: Touvron et al. 2021, table 1. DiT:
Peebles and Xie 2023, table 1.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from progc.errors import InputError

KEYS = ("depth", "width", "heads", "head_dim", "mlp", "mlp_ratio")
_EXAMPLE = "write for example depth=12,width=768,heads=12 or depth*2,width*1.5"
# The last operator is used: names of axes may contain dots, dashes, `#` and even `*`.
_ENTRY = re.compile(r"(?P<key>[^\s=][^=]*?)\s*(?P<operator>=\s*\*|=|\*)\s*(?P<number>[^\s=*]+)")
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclasses.dataclass(frozen=True)
class Size:
    """One target size: `value` units, or `value` times the current size if `relative`."""

    value: int | float
    relative: bool

    def __str__(self) -> str:
        return f"*{self.value}" if self.relative else f"={self.value}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Target sizes by key, and the text that they were read from."""

    entries: Mapping[str, Size]
    text: str

    def __str__(self) -> str:
        return ",".join(f"{key}{size}" for key, size in self.entries.items())


def looks_like_sizes(text: str) -> bool:
    """Returns whether a text is meant as sizes: it contains `=` or `*`, unlike a name or a path."""
    return "=" in text or "*" in text


def parse_sizes(text: str) -> Sizes:
    """Reads `key=12` (absolute), `key*2` or `key=*2` (relative), separated by commas.

    Absolute sizes are integers of at least 1, except `mlp_ratio`, which is any positive number. Factors are at least 1.

    Raises:
        InputError: an entry is not valid, a number is out of range, or a key is given twice.
    """
    entries: dict[str, Size] = {}
    if not text.strip():
        raise InputError(f"empty sizes; {_EXAMPLE}")
    for part in text.split(","):
        entry = part.strip()
        match = _ENTRY.fullmatch(entry)
        if match is None:
            given = f"`{entry}`" if entry else "an empty entry"
            raise InputError(f"sizes `{text}`: expected key=number or key*factor, got {given}; {_EXAMPLE}")
        key = match["key"].strip()
        if key in entries:
            raise InputError(f"sizes `{text}`: `{key}` is given twice; give it once")
        entries[key] = _size(text, key, match["number"], relative="*" in match["operator"])
    return Sizes(entries, text)


def _size(text: str, key: str, number: str, relative: bool) -> Size:
    value = float(number) if _NUMBER.fullmatch(number) else 0.0
    if not 0 < value < math.inf:
        raise InputError(f"sizes `{text}`: `{key}`: expected a positive number, got `{number}`; {_EXAMPLE}")
    if relative and value < 1:
        raise InputError(f"sizes `{text}`: factor {number} of `{key}` would shrink it; expected a factor of at least 1")
    if not relative and key != "mlp_ratio" and not value.is_integer():
        raise InputError(
            f"sizes `{text}`: `{key}`: expected an integer, got {number}; for a factor write {key}*{number}"
        )
    return Size(int(value) if value.is_integer() else value, relative)


PRESETS: dict[str, str] = {
    "vit_t": "depth=12,width=192,heads=3,mlp_ratio=4",
    "vit_s": "depth=12,width=384,heads=6,mlp_ratio=4",
    "vit_b": "depth=12,width=768,heads=12,mlp_ratio=4",
    "vit_l": "depth=24,width=1024,heads=16,mlp_ratio=4",
    "vit_h": "depth=32,width=1280,heads=16,mlp_ratio=4",
    "deit_t": "depth=12,width=192,heads=3,mlp_ratio=4",
    "deit_s": "depth=12,width=384,heads=6,mlp_ratio=4",
    "deit_b": "depth=12,width=768,heads=12,mlp_ratio=4",
    "dit_s": "depth=12,width=384,heads=6,mlp_ratio=4",
    "dit_b": "depth=12,width=768,heads=12,mlp_ratio=4",
    "dit_l": "depth=24,width=1024,heads=16,mlp_ratio=4",
    "dit_xl": "depth=28,width=1152,heads=16,mlp_ratio=4",
}
