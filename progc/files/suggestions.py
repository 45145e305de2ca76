"""Near misses: the names a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str], limit: int = 3) -> str:
    """`; did you mean a, b?` with the known names closest to `given`, or an empty string if none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(given, names, limit, cutoff=0.6)
    if not close:
        close = [name for name in names if given and name.startswith(given)][:limit]
    return f"; did you mean {', '.join(close)}?" if close else ""
