"""Agreement between the ranks of a distributed run: gathered values, one decision for all, and shared failures.

Without torch.distributed, or before its default group exists, a process is rank 0 of 1.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from progc import errors
from progc.errors import CheckError, InputError, OutsideError, ProgcError, one_line, outside


def rank() -> int:
    """Returns the rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if _several() else 0


def world() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if _several() else 1


def apart(timeout: datetime.timedelta | None = None) -> Any:
    """Returns a new gloo group of all ranks, for messages beside those of the default group; every rank calls this.

    Args:
        timeout: timeout of its collectives; None uses that of torch.
    """
    return dist.new_group(backend="gloo", timeout=timeout) if _several() else None


def gathered(value: Any, group: Any = None) -> list[Any]:
    """Gathers the values of all ranks on rank 0.

    The values are pickled, which is safe between ranks of one run.

    Args:
        value: the value of this rank.
        group: a group from `apart`; None for the default group.

    Returns:
        The values in the order of the ranks on rank 0; an empty list on the others.
    """
    if not _several():
        return [value]
    found: list[Any] = [None] * world()
    dist.gather_object(value, found if rank() == 0 else None, group=group)
    return found if rank() == 0 else []


def told(value: Any, group: Any = None) -> Any:
    """Returns the value of rank 0 on every rank."""
    if not _several():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def raise_together(error: BaseException | None) -> None:
    """Raises an error on every rank if any rank failed, so that no rank continues alone.

    Args:
        error: the failure of this rank, or None.

    Raises:
        InputError: another rank failed (`OutsideError` if the same may succeed later); the message gives its number.
            A rank that failed raises its own error.
    """
    if _several():
        texts: list[Any] = [None] * world()
        own = None if error is None else (str(error) or type(error).__name__, outside(error))
        dist.all_gather_object(texts, own)
        if error is None and (first := next((text for text in texts if text is not None), None)) is not None:
            raise (OutsideError if first[1] else InputError)(f"rank {texts.index(first)}: {first[0]}")
    if error is not None:
        raise error


def agreed(question: str, answer: Callable[[], Any]) -> Any:
    """Computes an answer on rank 0 and returns it on every rank of the default group.

    One rank decides, so clocks and rounding cannot make ranks decide differently. The answer is sent as JSON, so no
    rank runs code that another one sends; every rank, rank 0 included, returns the value parsed from that JSON. All
    ranks have to call this at the same point. They wait as long as rank 0 takes: `init_process_group` needs a longer
    timeout.

    Args:
        question: a name for the decision; ranks that ask different questions raise an error.
        answer: computes a value of plain JSON types.

    Raises:
        ProgcError: `answer` raised it on rank 0; raised on every rank, with the same text and exit code.
        CheckError: `answer` failed on rank 0 with another error (which rank 0 raises), or the ranks ask different
            questions.
    """
    if world() == 1:
        return json.loads(json.dumps(answer()))
    message: dict[str, Any] = {"question": question}
    failure: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            message["answer"] = answer()
            data = json.dumps(message).encode()
        except BaseException as error:  # of any type: the other ranks wait for a message
            failure = error
            data = json.dumps({"question": question, "error": _told(error)}).encode()
        _send(data)
        if failure is not None:
            raise failure
    else:
        data = _receive()
    message = json.loads(data)
    if message["question"] != question:
        raise CheckError(
            f"rank 0 decides {message['question']} and rank {dist.get_rank()} {question}; "
            "start every rank with the same plan and options"
        )
    if "error" in message:
        raise _raised(message["error"])
    return message["answer"]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _told(error: BaseException) -> dict[str, str]:
    text = one_line(error)
    if isinstance(error, ProgcError):
        plain = "CheckError" if error.exit_code == CheckError.exit_code else "InputError"
        return {"class": type(error).__name__, "else": plain, "text": text}
    return {"class": "CheckError", "else": "CheckError", "text": f"rank 0 failed: {type(error).__name__}: {text}"}


def _raised(told: dict[str, str]) -> ProgcError:
    """The error of rank 0, in its own class if that is one of `progc.errors` that takes a message alone."""
    try:
        raised = getattr(errors, told["class"])(told["text"])
    except (AttributeError, TypeError):
        raised = getattr(errors, told["else"])(told["text"])
    assert isinstance(raised, ProgcError)
    return raised


def _send(data: bytes) -> None:
    device = _device()
    dist.broadcast(torch.tensor([len(data)], dtype=torch.int64, device=device), src=0)
    dist.broadcast(torch.tensor(list(data), dtype=torch.uint8, device=device), src=0)


def _receive() -> bytes:
    device = _device()
    length = torch.zeros(1, dtype=torch.int64, device=device)
    dist.broadcast(length, src=0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return bytes(data.tolist())


def _device() -> torch.device:
    """The device for tensors of the default group: the CPU if its backend supports that."""
    backends = dist.get_backend_config()
    if any(name in backends for name in ("gloo", "mpi", "ucc")) or not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
