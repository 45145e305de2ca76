"""Ranks agree: the first one decides, the others take its answer, so that clocks and rounding cannot part them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from progc import errors
from progc.errors import CheckError, ProgcError


def agreed(question: str, answer: Callable[[], Any]) -> Any:
    """What `answer` gives on rank 0, on every rank of the default group; without a group, what it gives here.

    Only rank 0 computes. The answer travels as JSON, so no rank runs what another one sends, and every rank gets it
    from the JSON. All ranks have to call this at the same point. They wait as long as rank 0 takes: give
    `init_process_group` a timeout that is longer.

    Args:
        question: what is asked, so that ranks that ask different things notice.
        answer: gives a value of plain JSON types.

    Raises:
        ProgcError: what `answer` raised on rank 0, on every rank, with the same text and exit code.
        CheckError: `answer` failed on rank 0 by another error (rank 0 raises that one), or the ranks ask different
            things.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return json.loads(json.dumps(answer()))
    message: dict[str, Any] = {"question": question}
    failure: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            message["answer"] = answer()
            data = json.dumps(message).encode()
        except BaseException as error:  # whatever it is, the others wait
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


def _told(error: BaseException) -> dict[str, str]:
    text = " ".join(str(error).split())
    if isinstance(error, ProgcError):
        plain = "CheckError" if error.exit_code == CheckError.exit_code else "InputError"
        return {"class": type(error).__name__, "else": plain, "text": text}
    return {"class": "CheckError", "else": "CheckError", "text": f"rank 0 failed: {type(error).__name__}: {text}"}


def _raised(told: dict[str, str]) -> ProgcError:
    """The error of rank 0: of its class where that is one of ours which a text alone makes, else of a plain one."""
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
    """Where the default group's tensors have to be: the CPU if its backend takes that."""
    backends = dist.get_backend_config()
    if any(name in backends for name in ("gloo", "mpi", "ucc")) or not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
