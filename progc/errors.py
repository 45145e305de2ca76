"""Every error that a user can meet, with the exit code it carries.

A message says what was given, what was expected and how to go on, in one line. `ProgcError` and its
children are for users; `assert` is for our own invariants.

Near misses: the names a user may have meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LOSSY = "accept the difference with lossy=true (progc grow: --lossy)"
"""How to go on where exact growth is impossible; part of every such message."""


class ProgcError(Exception):
    """Base of all user-facing errors. `exit_code` is what the command line returns."""

    exit_code = 2


class InputError(ProgcError):
    """Wrong use or bad input: a path, a name, an option, a file's contents. Exit code 2."""


class CaptureError(InputError):
    """The model cannot be captured by torch.export; names the user's file, line and construct."""


class TargetError(InputError):
    """A target that cannot be reached from the source: smaller, not aligned, forbidden by a constraint."""


class PipelineSyntaxError(InputError):
    """Pipeline text that does not parse. `text` and `position` place the caret."""

    def __init__(self, message: str, text: str, position: int) -> None:
        self.text = text
        self.position = position
        super().__init__(message)


class PassOptionError(InputError):
    """An option that a pass does not have, or a value it does not take."""


class CheckError(ProgcError):
    """A check failed: growth claimed lossless and is not, verifier, NaN. Exit code 1."""

    exit_code = 1


class VerifyError(CheckError):
    """The verifier found a broken program; the message names the pass, the node, expected and found."""


class NotLosslessError(CheckError):
    """Lossless growth was asked for and cannot be exact: names the axis, the operation and why."""


def did_you_mean(given: str, known: Iterable[str], limit: int = 3) -> str:
    """`; did you mean a, b?` with the known names closest to `given`, or an empty string if none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(given, names, limit, cutoff=0.6)
    if not close:
        close = [name for name in names if given and name.startswith(given)][:limit]
    return f"; did you mean {', '.join(close)}?" if close else ""
