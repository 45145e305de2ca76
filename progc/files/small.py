"""Small files that a user points at: read whole, within bounds, and only where they are regular files.

A pipe or a device would keep a command waiting for ever. A link is followed: the user gave its name. Files of a
checkpoint, which may come from elsewhere as a folder, are read by progc/files/reading.py, which follows none.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from progc.errors import InputError
from progc.files.reading import parse_object

LIMIT = 256 << 20
"""Bytes."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; never waits.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a NUL in its name
        raise OSError(str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, limit: int = LIMIT) -> str:
    """A text in UTF-8.

    Raises:
        OSError: as `open_regular`.
        ValueError: it has more than `limit` bytes, or is no UTF-8.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if data is None or len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data.decode("utf-8")


def read_object(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """A JSON object with numbers that are numbers, nested at most 64 deep.

    Raises:
        InputError: anything else; names `path`.
    """
    try:
        text = read_text(path, limit)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_object(text, path)
