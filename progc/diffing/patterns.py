"""Names that differ in numbers alone, as one pattern: `blocks.{0-11}.attn.qkv.weight`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

# A number that would be written with a leading zero stays text: `{1-2}` could not say it.
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]*)(?![0-9])")

Fields = tuple[frozenset[int], ...]


def grouped(names: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Patterns with the names that each stands for, in order of first appearance.

    A pattern stands for its names and for nothing else: two rows are put together only where they agree in all numbers
    but one.
    """
    families: dict[tuple[str, ...], dict[Fields, list[str]]] = {}
    for name in dict.fromkeys(names):
        parts = _NUMBER.split(name)
        fields = tuple(frozenset([int(part)]) for part in parts[1::2])
        families.setdefault(tuple(parts[0::2]), {})[fields] = [name]
    found = []
    for text, rows in families.items():
        for place in range(len(text) - 1):
            rows = _merged(rows, place)
        found += [(_pattern(text, fields), tuple(members)) for fields, members in rows.items()]
    return found


def _merged(rows: dict[Fields, list[str]], place: int) -> dict[Fields, list[str]]:
    """Rows that agree in all numbers but the one at `place` as one row."""
    alike: dict[tuple[Fields, Fields], list[Fields]] = {}
    for fields in rows:
        alike.setdefault((fields[:place], fields[place + 1 :]), []).append(fields)
    return {
        (*before, frozenset().union(*(fields[place] for fields in group)), *after): [
            name for fields in group for name in rows[fields]
        ]
        for (before, after), group in alike.items()
    }


def _pattern(text: Sequence[str], fields: Fields) -> str:
    return "".join(itertools.chain(*itertools.zip_longest(text, map(numbers, fields), fillvalue="")))


def numbers(values: Iterable[int]) -> str:
    """`{0-3,7}`; a single number stands for itself."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return texts[0] if len(runs) == 1 and runs[0][0] == runs[0][1] else "{" + ",".join(texts) + "}"
