"""Reads files that may be damaged or hostile: text, JSON, headers of safetensors files, and output folders.

Every read is bounded and never waits: pipes, devices and folders are refused. Files of a folder that may come from
elsewhere, such as a checkpoint, are not read through symbolic links; a path that the user gave is (`links=True`).
Every failure is an `InputError` that names the file. Imports no torch and no user code.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from progc.errors import InputError

MAX_JSON = 64 << 20
"""Bytes of a JSON file of a checkpoint; the state of 100,000 tensors takes a tenth of it."""

MAX_GIVEN = 256 << 20
"""Bytes of a text file that the user gave."""

_MAX_HEADER = 100_000_000  # as in the safetensors library
_MAX_DEPTH = 64
_MAX_RANK = 64
_LENGTH = 8  # a safetensors file starts with the size of its JSON header in bytes, 64 bits, little-endian
_METADATA = "__metadata__"
_CHUNK = 1 << 20
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 8),
}


def open_file(path: Path, *, links: bool = False) -> BinaryIO:
    """Opens a regular file for reading, unbuffered; never waits.

    Args:
        path: the file.
        links: whether symbolic links are followed.

    Raises:
        InputError: the file is missing, cannot be read, or is a pipe, a device, a folder or (without `links`) a link.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= 0 if links else getattr(os, "O_NOFOLLOW", 0)
    expected = "a file" if links else "a file of the folder itself"
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        number = getattr(error, "errno", None)
        if number in (errno.ELOOP, errno.EMLINK) and not links:
            raise InputError(f"{path} is a symbolic link; expected {expected}") from error
        if number == errno.ENOENT:
            raise InputError(f"{path} is missing") from error
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file; expected {expected}")
    return os.fdopen(descriptor, "rb", buffering=0)


def digest(path: Path, size: int) -> str:
    """Returns the sha256 of a file, in hexadecimal.

    Args:
        path: the file.
        size: the bytes that it must have.

    Raises:
        InputError: see `open_file`; or the file has another size.
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


def read_text(path: Path, limit: int = MAX_JSON, *, links: bool = False) -> str:
    """Returns the contents of a text file in UTF-8.

    Args:
        path: the file.
        limit: the largest size, in bytes.
        links: whether symbolic links are followed.

    Raises:
        InputError: see `open_file`; or the file is larger than `limit`, or is not UTF-8.
    """
    try:
        with open_file(path, links=links) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} has {size:,} bytes; expected at most {limit:,}")
            data = _read(file, size + 1)
        if len(data) > size:
            raise InputError(f"{path} was changed while it was being read")
        return data.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8 ({error})") from error


def read_object(path: Path, limit: int = MAX_JSON, *, links: bool = False) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Raises:
        InputError: see `read_text` and `parse_object`.
    """
    return parse_object(read_text(path, limit, links=links), path)


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """Parses a JSON object, nested at most 64 deep, without NaN and infinities.

    Args:
        text: the JSON.
        path: where it is from, for the message.

    Raises:
        InputError: the text is something else.
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


def is_count(value: Any) -> bool:
    """Whether a value is an int of at least 0 that fits into 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


# --- safetensors ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file.

    Attributes:
        dtype: in the format's words, such as `F32`.
        shape: sizes.
        start, end: where its data lie, in bytes from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, *, links: bool = False) -> dict[str, Entry]:
    """Returns the tensors that a safetensors file holds, by name, in the order of its header; reads no data.

    The file must be as the safetensors library writes it: the data of the tensors follow one another without gap or
    overlap up to the end of the file.

    Raises:
        InputError: see `open_file`; or the file is not such a file.
    """
    try:
        with open_file(path, links=links) as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(_read(file, _LENGTH), size, path)
            text = _read(file, length)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return header_entries(text, size, path)


def header_length(start: bytes, size: int, path: Path) -> int:
    """Returns the size in bytes of the JSON header, which follows the first 8 bytes of a safetensors file.

    Args:
        start: the first 8 bytes.
        size: of the whole file, in bytes.
        path: for the message.

    Raises:
        InputError: the header would not fit into the file.
    """
    if len(start) < _LENGTH:
        raise _unreadable(path, f"it has {size} bytes")
    length = int.from_bytes(start, "little")
    if length > min(size - _LENGTH, _MAX_HEADER):
        raise _unreadable(path, f"a header of {length} bytes in a file of {size}")
    return length


def header_entries(text: bytes, size: int, path: Path) -> dict[str, Entry]:
    """Returns what `read_header` returns, from a header that was read already.

    Args:
        text: the JSON header.
        size: of the whole file, in bytes.
        path: for the message.

    Raises:
        InputError: the header is damaged, or does not describe a file of this size.
    """
    try:
        header = parse_object(text.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"its header is not UTF-8: {error}") from error
    except InputError as error:
        raise _unreadable(path, f"its header: {str(error).removeprefix(f'{path} ')}") from error
    base = _LENGTH + len(text)
    try:
        found = {name: _entry(item, base, name) for name, item in header.items() if name != _METADATA}
        place = base
        for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != place:
                raise ValueError(f"{name[:80]!r} overlaps another tensor or leaves a gap")
            place = entry.end
        if place != size:
            raise ValueError(f"it has {size} bytes, but {place} by its header; it was cut off or changed")
    except ValueError as error:
        raise _unreadable(path, str(error)) from error
    return found


def _entry(item: Any, base: int, name: str) -> Entry:
    where = repr(name[:80])
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} is described wrongly; expected dtype, shape and data_offsets")
    kind, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    width = _SIZES.get(kind) if isinstance(kind, str) else None
    if width is None:
        raise ValueError(f"{where} has the unknown dtype {str(kind)[:40]}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(is_count(size) for size in shape):
        raise ValueError(f"{where} does not have a valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise ValueError(f"{where} does not have valid data_offsets")
    count, expected = offsets[1] - offsets[0], math.prod(shape) * width
    if count != expected:
        raise ValueError(f"{where} has {count} bytes; its shape takes {expected if is_count(expected) else 'more'}")
    return Entry(kind, tuple(shape), base + offsets[0], base + offsets[1])


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a readable safetensors file ({reason})")


# --- output folders -------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> dict[str, Any]:
    """Reads a folder written by `--out`: its report, its plan, and what its safetensors files hold.

    Returns:
        `folder`, `report`, `plan` (None if there is none) and `tensors`: for each safetensors file the dtype and shape
        of each tensor.

    Raises:
        InputError: this is not an output folder, or a file in it is damaged.
    """
    if not (folder / "report.json").is_file():
        raise InputError(f"{folder} is a folder without report.json; expected one written by --out, or a model")
    try:
        return {
            "folder": str(folder),
            "report": read_object(folder / "report.json", MAX_GIVEN, links=True),
            "plan": read_object(plan, MAX_GIVEN, links=True) if (plan := folder / "plan.json").is_file() else None,
            "tensors": {
                path.name: {
                    name: {"dtype": entry.dtype, "shape": list(entry.shape)}
                    for name, entry in read_header(path, links=True).items()
                }
                for path in sorted(folder.glob("*.safetensors"))
            },
        }
    except InputError as error:
        raise InputError(f"{error}; write the folder again") from error


def _read(file: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes: an unbuffered file may return fewer than it has."""
    data = bytearray()
    while len(data) < count and (part := file.read(min(count - len(data), _CHUNK))):
        data += part
    return bytes(data)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not allowed in JSON")
