"""Reading files that may be damaged or hostile: bounded, not through links; all failures are InputErrors. No torch."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO

from progc.errors import InputError

MAX_JSON = 64 << 20
"""Bytes of a JSON file; state of 100,000 tensors takes a tenth of it."""

_MAX_HEADER = 100_000_000  # as in the safetensors library
_MAX_DEPTH = 64
_MAX_RANK = 64
_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 20
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 8),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file; `start` and `end` count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file for reading, unbuffered.

    Raises:
        InputError: it is not there, or is a link, a pipe, a device or a folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ELOOP, errno.EMLINK):
            raise InputError(f"{path} is a symbolic link; expected a file of the folder itself") from error
        if number == errno.ENOENT:
            raise InputError(f"{path} is missing") from error
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file; expected a file of the folder itself")
    return os.fdopen(descriptor, "rb", buffering=0)


def digest(path: Path, size: int) -> str:
    """sha256 (hex) of a file.

    Raises:
        InputError: as `open_file`; or the file has not `size` bytes.
    """
    sha = hashlib.sha256()
    left = size
    try:
        with open_file(path) as file:
            there = os.fstat(file.fileno()).st_size
            if there != size:
                raise InputError(f"{path} has {there} bytes, the manifest says {size}; it was cut off or changed")
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if left:
        raise InputError(f"{path} was changed while it was being read")
    return sha.hexdigest()


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """A small text file in UTF-8.

    Raises:
        InputError: as `open_file`; or it is larger than `limit` bytes or no text.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} has {size} bytes; expected at most {limit}")
            parts = []
            while part := file.read(_CHUNK):
                parts.append(part)
                size -= len(part)
                if size < 0:
                    raise InputError(f"{path} was changed while it was being read")
        return b"".join(parts).decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error})") from error


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """A JSON object with numbers that are numbers, nested at most 64 deep.

    Raises:
        InputError: anything else; names `path`.
    """
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_refuse)
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply; expected at most {_MAX_DEPTH} levels") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for held in level
            for item in (held.values() if isinstance(held, dict) else held)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return value
    raise InputError(f"{path} is nested too deeply; expected at most {_MAX_DEPTH} levels")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: as `read_text` and `parse_object`.
    """
    return parse_object(read_text(path), path)


def read_header(path: Path) -> dict[str, Entry]:
    """What a safetensors file holds; tensors follow one another without overlap or gap, up to the end of the file.

    Raises:
        InputError: anything else.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise InputError(f"{path} is no safetensors file: it has {size} bytes")
            (length,) = _LENGTH.unpack(start)
            if length > min(size - _LENGTH.size, _MAX_HEADER):
                raise InputError(f"{path} is no safetensors file: a header of {length} bytes in a file of {size}")
            text = bytearray()
            while len(text) < length and (part := file.read(length - len(text))):
                text += part
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return header_entries(bytes(text), size, path)


def header_entries(text: bytes, size: int, path: Path) -> dict[str, Entry]:
    """As `read_header`, of a header that was read already.

    Args:
        text: the JSON header.
        size: of the whole file, in bytes.
    """
    try:
        header = parse_object(text.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no safetensors file: its header is no text ({error})") from error
    base = _LENGTH.size + len(text)
    found = {name: _entry(item, base, f"{path}: {name[:80]!r}") for name, item in header.items() if name != _METADATA}
    place = base
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != place:
            raise InputError(f"{path}: {name[:80]!r} overlaps another tensor or leaves a gap; progc did not write it")
        place = entry.end
    if place != size:
        raise InputError(f"{path} has {size} bytes, its header tells of {place}; it was cut off or changed")
    return found


_METADATA = "__metadata__"


def _entry(item: Any, base: int, where: str) -> Entry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where} is described wrongly; expected dtype, shape and data_offsets")
    kind, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    width = _SIZES.get(kind) if isinstance(kind, str) else None
    if width is None:
        raise InputError(f"{where} has an unknown dtype {str(kind)[:40]}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(is_count(size) for size in shape):
        raise InputError(f"{where} has a shape that is none")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise InputError(f"{where} has data_offsets that are none")
    if offsets[1] - offsets[0] != math.prod(shape) * width:
        raise InputError(f"{where} has {offsets[1] - offsets[0]} bytes, its shape asks for another number")
    return Entry(kind, tuple(shape), base + offsets[0], base + offsets[1])


def is_count(value: Any) -> bool:
    """Whether a value is an int of at least 0 that fits into 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
