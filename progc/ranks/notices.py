"""Why a rank failed, left where the other ranks find it.

A rank that ends breaks the connections of the others, which see an error of the network and not its reason. So it
writes the reason into the store by which the ranks found one another before it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import torch.distributed as dist

from progc.errors import CheckError, InputError, OutsideError, ProgcError, one_line
from progc.ranks.agreeing import rank, world

_store: Any = None


@dataclasses.dataclass(frozen=True)
class Notice:
    """Why a rank failed.

    Attributes:
        rank: the rank.
        text: its message.
        exit_code: its exit code.
        outside: whether the same may succeed when it is done again.
    """

    rank: int
    text: str
    exit_code: int
    outside: bool

    def raised(self) -> ProgcError:
        """Returns the error to raise on another rank: of the same kind, with the same exit code."""
        kind = OutsideError if self.outside else CheckError if self.exit_code == CheckError.exit_code else InputError
        error = kind(f"rank {self.rank} ended the run: {self.text}")
        error.exit_code = self.exit_code
        return error


def use(store: Any) -> None:
    """Sets the store of this run (`torch.distributed.Store`); None forgets it."""
    global _store
    _store = None if store is None else dist.PrefixStore("progc-failed", store)


def leave(error: BaseException, exit_code: int, outside: bool) -> None:
    """Leaves a notice for the other ranks."""
    if _store is None:
        return
    text = one_line(error) if isinstance(error, ProgcError) else f"{type(error).__name__}: {one_line(error, 200)}"
    with contextlib.suppress(RuntimeError):  # the process that holds the store may have ended
        _store.set(str(rank()), json.dumps(dataclasses.asdict(Notice(rank(), text, exit_code, outside))))


def left() -> Notice | None:
    """Returns the notice of the first other rank that left one; None if there is none."""
    if _store is None:
        return None
    with contextlib.suppress(RuntimeError):
        for other in range(world()):
            if other != rank() and _store.check([str(other)]):
                return Notice(**json.loads(_store.get(str(other))))
    return None
