"""Ranks that save together: what each one gives goes to rank 0, and a failure there is one everywhere."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from progc.errors import InputError


def rank() -> int:
    """Of this process; 0 without torch.distributed."""
    return dist.get_rank() if _several() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _several() else 1


def apart() -> Any:
    """A group of all ranks for what is said beside training, from another thread; every rank asks for it."""
    return dist.new_group(backend="gloo") if _several() else None


def gathered(value: Any, group: Any = None) -> list[Any]:
    """The values of all ranks on rank 0, in their order; an empty list on the others. They come from our own ranks.

    Args:
        group: from `apart`; None: the one that trains.
    """
    if not _several():
        return [value]
    found: list[Any] = [None] * world()
    dist.gather_object(value, found if rank() == 0 else None, group=group)
    return found if rank() == 0 else []


def told(value: Any, group: Any = None) -> Any:
    """What rank 0 has, on every rank."""
    if not _several():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def agreed(error: BaseException | None) -> None:
    """Raises the failure of any rank on every rank: no rank goes on alone.

    Raises:
        InputError: a rank failed; the failure itself where it happened.
    """
    if _several():
        texts: list[Any] = [None] * world()
        dist.all_gather_object(texts, None if error is None else str(error) or type(error).__name__)
        if error is None and (first := next((text for text in texts if text is not None), None)) is not None:
            raise InputError(f"rank {texts.index(first)}: {first}")
    if error is not None:
        raise error


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
