"""How a failed run ends: whose fault it was, and the exit code that tells a scheduler what to do next.

| code | training began | the same command again |
| ---- | -------------- | ---------------------- |
| 1    | as may be      | fails in the same way  |
| 2    | no             | fails in the same way  |
| 3    | yes            | fails in the same way  |
| 75   | as may be      | may succeed            |

75 is EX_TEMPFAIL of sysexits.h.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from progc.errors import CheckError, InputError, OutsideError, ProgcError, outside
from progc.ranks import notices
from progc.ranks.agreeing import rank, world

BEGAN = 3
"""Training began, and then something in the user's files or settings ended it."""
AGAIN = 75
"""Something outside of progc and of the user's files ended the run; the same command again resumes it."""


def exit_code(error: BaseException, step: int) -> int:
    """Returns the exit code of a run that an error ended.

    Args:
        error: the error.
        step: optimizer steps that the run has taken, in all its starts.
    """
    if not isinstance(error, InputError):
        return CheckError.exit_code
    return AGAIN if outside(error) else BEGAN if step else InputError.exit_code


@contextlib.contextmanager
def explained(step: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Sets the exit code of an error that is raised inside, and tells the other ranks about the error.

    An error of the network between ranks becomes the error of the rank that failed first.

    Args:
        step: returns the optimizer steps that the run has taken.
    """
    try:
        yield
    except Exception as error:
        found = _of_the_user(error)
        if not isinstance(found, ProgcError) or "exit_code" not in vars(found):  # else done further inside
            code = exit_code(found, step())
            notices.leave(found, code, outside(found))
            if isinstance(found, ProgcError):
                found.exit_code = code
        if found is error:
            raise
        raise found from error


def _of_the_user(error: Exception) -> Exception:
    """Returns an error that explains the given one to users; the given error if there is nothing to add."""
    if isinstance(error, ProgcError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return InputError(
            "the device is out of memory; use a smaller train.batch, a larger train.accumulate (the same batch in more "
            "parts), train.recompute=true or train.amp=bf16"
        )
    if world() > 1:
        notice = notices.left()
        if notice is not None:
            return notice.raised()
        if _is_of_the_network(error):
            return OutsideError(
                f"rank {rank()} lost the connection to another rank, which was killed or failed (its own message says "
                "why); run the same command again to resume"
            )
    return error


def _is_of_the_network(error: Exception) -> bool:
    """Whether collectives failed; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and re.search(r"gloo|closed by peer|reset by peer", str(error)) is not None
    )
