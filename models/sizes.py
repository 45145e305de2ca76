"""Sizes as text: `depth=12,width=768,heads=12` says what a network shall become, `depth*2,width*1.5` by how much.

A key is `depth`, `width`, `heads`, `head_dim`, `mlp`, `mlp_ratio`, or the name of an axis or a chain. The
text says nothing about a network; whether a network can have these sizes is decided against its axes.

Sizes by name, as the papers that introduced them define them; they apply to the user's own network.

ViT: Dosovitskiy et al. 2021, table 1 (tiny and small: Touvron et al. 2021, table 1; huge: patch size is the
user's). DeiT: Touvron et al. 2021, table 1. DiT: Peebles and Xie 2023, table 1.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from progc.errors import InputError

KEYS = ("depth", "width", "heads", "head_dim", "mlp", "mlp_ratio")
_EXAMPLE = "write for example depth=12,width=768,heads=12 or depth*2,width*1.5"
# The last operator counts: names of axes may hold dots, dashes, `#` and even `*`.
_ENTRY = re.compile(r"(?P<key>[^\s=][^=]*?)\s*(?P<operator>=\s*\*|=|\*)\s*(?P<number>[^\s=*]+)")
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclasses.dataclass(frozen=True)
class Size:
    """One wanted size: `value` units, or `value` times the present size where `relative`."""

    value: int | float
    relative: bool

    def __str__(self) -> str:
        return f"*{self.value}" if self.relative else f"={self.value}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Wanted sizes by key, and the text they came from."""

    entries: Mapping[str, Size]
    text: str

    def __str__(self) -> str:
        return ",".join(f"{key}{size}" for key, size in self.entries.items())


def looks_like_sizes(text: str) -> bool:
    """Whether text is meant as sizes (it has `=` or `*`) rather than as a name or a path."""
    return "=" in text or "*" in text


def parse_sizes(text: str) -> Sizes:
    """Reads `key=12` (absolute), `key*2` or `key=*2` (relative), separated by commas.

    Absolute sizes are integers >= 1, except `mlp_ratio`, which like factors is any number; factors are >= 1.

    Raises:
        InputError: an entry that does not parse, a number out of range, or a key given twice.
    """
    entries: dict[str, Size] = {}
    if not text.strip():
        raise InputError(f"empty sizes; {_EXAMPLE}")
    for part in text.split(","):
        entry = part.strip()
        match = _ENTRY.fullmatch(entry)
        if match is None:
            given = f"`{entry}`" if entry else "an empty entry"
            raise InputError(f"sizes `{text}`: {given} is not key=number or key*factor; {_EXAMPLE}")
        key = match["key"].strip()
        if key in entries:
            raise InputError(f"sizes `{text}`: `{key}` is given twice; keep one of them")
        entries[key] = _size(text, key, match["number"], relative="*" in match["operator"])
    return Sizes(entries, text)


def _size(text: str, key: str, number: str, relative: bool) -> Size:
    value = float(number) if _NUMBER.fullmatch(number) else 0.0
    if not 0 < value < math.inf:
        raise InputError(f"sizes `{text}`: `{number}` of `{key}` is not a positive number; {_EXAMPLE}")
    if relative and value < 1:
        raise InputError(f"sizes `{text}`: factor {number} of `{key}` would shrink it; a factor is 1 or more")
    if not relative and key != "mlp_ratio" and not value.is_integer():
        raise InputError(f"sizes `{text}`: `{key}` is a whole number, not {number}; for a factor write {key}*{number}")
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
