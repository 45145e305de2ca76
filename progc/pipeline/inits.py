"""How new weights are made, as text: `width=copy,depth=identity`, or one word that only one of them has."""

from __future__ import annotations

from progc.errors import InputError
from progc.files.suggestions import did_you_mean

INITS: dict[str, tuple[str, ...]] = {
    "width": ("copy", "zero", "random"),
    "depth": ("identity", "interpolate", "stack", "mogrow", "random"),
}
_FORMS = "; ".join(f"{kind}={'|'.join(words)}" for kind, words in INITS.items())


def parse_inits(text: str) -> dict[str, str]:
    """The inits that `text` names, by `width` and `depth`; what it leaves out keeps its default.

    Raises:
        InputError: an unknown kind or word, a word that both have, or a kind given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        kind, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals:
            word, kinds = kind, [name for name, words in INITS.items() if kind in words]
            if len(kinds) > 1:
                raise InputError(f"init `{word}` exists for {' and '.join(kinds)}; write {kinds[0]}={word}")
            kind = kinds[0] if kinds else ""
        if not kind or (kind in INITS and word not in INITS[kind]):
            words = INITS[kind] if kind else [item for words in INITS.values() for item in words]
            raise InputError(f"unknown init `{part.strip()}`{did_you_mean(word, words) or ';'} expected {_FORMS}")
        if kind not in INITS:
            raise InputError(f"init `{part.strip()}`: `{kind}` is not width or depth; expected {_FORMS}")
        if kind in found:
            raise InputError(f"init `{text}` gives {kind} twice; keep one of them")
        found[kind] = word
    return found
