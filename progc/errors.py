"""The errors that users meet, each with its exit code, and suggestions for mistyped names.

A message is one line: what was given, what was expected, and what to do next. `ProgcError` and its subclasses are for
users; `assert` is for progc's own invariants.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

LOSSY = "accept the difference with lossy=true (progc grow: --lossy)"
"""What to do where exact growth is impossible; part of every such message."""


class ProgcError(Exception):
    """Base class of all errors for users. `exit_code` is what the command line returns."""

    exit_code = 2


class InputError(ProgcError):
    """Invalid input: a path, a name, an option, or the contents of a file. Exit code 2."""


class OutsideError(InputError):
    """What failed lies outside of progc and of the user's files, such as a process that was killed.

    The same command may succeed when it is run again.
    """


class CaptureError(InputError):
    """torch.export cannot capture the model; the message gives the file, the line and the construct."""


class TargetError(InputError):
    """The target cannot be reached from the source: it is smaller, not aligned, or violates a constraint."""


class PipelineSyntaxError(InputError):
    """The pipeline text does not parse. `text` and `position` give the place of the error."""

    def __init__(self, message: str, text: str, position: int) -> None:
        self.text = text
        self.position = position
        super().__init__(message)


class PassOptionError(InputError):
    """A pass does not have this option, or does not accept this value."""


class CheckError(ProgcError):
    """A check failed: the float64 check of a growth, the verifier, or a loss that is NaN. Exit code 1."""

    exit_code = 1


class VerifyError(CheckError):
    """The verifier found an invalid program; the message names the pass, the node, and what was expected and found."""


class NotLosslessError(CheckError):
    """Lossless growth is impossible here; the message names the axis, the operation and the reason."""


PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTUNREACH", "EIO", "ENETDOWN",
        "ENETUNREACH", "ENOLINK", "ENOMEM", "ENOSPC", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Errors of the system that may be gone when a command is run again: a full disk, a lost connection."""


def outside(error: BaseException) -> bool:
    """Returns whether an error, or what caused it, may be gone when the same command is run again."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (OutsideError, ConnectionError, TimeoutError)):
            return True
        if isinstance(link, OSError) and link.errno in PASSING:
            return True
        link = link.__cause__
    return False


def did_you_mean(given: str, known: Iterable[str], limit: int = 3) -> str:
    """Returns `; did you mean a, b?` with the known names closest to `given`, or an empty string if none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(given, names, limit, cutoff=0.6)
    if not close:
        close = [name for name in names if given and name.startswith(given)][:limit]
    return f"; did you mean {', '.join(close)}?" if close else ""


def first_of(names: Sequence[str], count: int = 1) -> str:
    """Returns the first names, and how many are left out: `a, b, c and 4 more`.

    Args:
        names: at least one.
        count: how many to show.
    """
    left = len(names) - count
    return ", ".join(names[:count]) + (f" and {left} more" if left > 0 else "")


def one_line(error: BaseException, limit: int | None = None, empty: str | None = None) -> str:
    """Returns the message of any exception on one line.

    Args:
        error: what was raised, by any library.
        limit: of characters; a longer message is cut, and `...` marks the cut.
        empty: stands for a message without words; by default the name of the exception's class.
    """
    text = " ".join(str(error).split()) or empty or type(error).__name__
    return text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
