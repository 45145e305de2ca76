"""The folder of a run: one process group at a time writes into it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.files.writing import sync
from progc.ir.tensor_file import write_tensors
from progc.ranks.gathering import agreed

if TYPE_CHECKING:
    import torch

LOCK = ".lock"


@contextlib.contextmanager
def held(run: Path, writes: bool = True) -> Iterator[None]:
    """Makes the folder and keeps other processes from training into it, until this one leaves or dies.

    Not to be nested: a process that closes a second descriptor of the lock's file lets go of the lock.

    Args:
        writes: whether this is the rank that writes; the others hear whether it may.

    Raises:
        InputError: it is a file, the disk refuses, or another process trains there; on every rank.
    """
    descriptor, failure = None, None
    try:
        descriptor = _taken(run) if writes else None
    except InputError as error:
        failure = error
    agreed(failure)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _taken(run: Path) -> int:
    """The lock, as an open file."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise InputError(f"run folder {run} cannot be used: {error.strerror or error}; choose another") from error
    if not _locked(descriptor):
        os.close(descriptor)
        raise InputError(f"another process trains into {run}; wait for its end, or choose another folder")
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # no such locks here
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by processes that load samples
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes safetensors, whole or not at all; an older file is replaced.

    Raises:
        InputError: the disk refuses.
    """
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}"
    try:
        write_tensors(temporary, {name: tensor.detach() for name, tensor in tensors.items()})
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; free space") from error
    finally:
        temporary.unlink(missing_ok=True)
