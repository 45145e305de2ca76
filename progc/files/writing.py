"""Output folders, written whole or not at all: a sibling under a temporary name, fsync, rename.

Reading an output folder: JSON files and safetensors headers, by hand. Imports no torch and no user code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from progc.errors import InputError
from progc.files.json import open_regular, read_object

_PREFIX = ".progc-"


def check_output(folder: Path) -> None:
    """Asks, before any work, whether `folder` can be written; leaves nothing behind.

    Raises:
        InputError: it exists and is not an empty folder, or its parent takes no files.
    """
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir():
            raise InputError(f"output {folder} is not a folder; give a new name or an empty folder")
        if any(folder.iterdir()):
            raise InputError(f"output folder {folder} is not empty; give a new name or empty it")
    above = folder.resolve().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    probe = above / _temporary()
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written ({error.strerror} in {above}); choose another place"
        ) from error


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into; it becomes `folder` when the block ends without an exception.

    Raises:
        InputError: as `check_output`, or the disk refuses.
    """
    check_output(folder)
    final = folder.resolve()
    temporary = final.parent / _temporary()
    above = [parent for parent in final.parents if not parent.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.iterdir()):
            sync(path)
        sync(temporary)
        os.replace(temporary, final)
        above.clear()
        sync(final.parent)
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else may have put something there by now
            for parent in above:
                parent.rmdir()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON, indented, with a final newline."""
    path.write_text(json_text(value) + "\n", encoding="utf-8")


def check_file(path: Path) -> None:
    """Asks, before any work, whether the file `path` can be written; leaves nothing behind.

    Raises:
        InputError: it is a folder, or its folder does not exist or takes no files.
    """
    if path.is_dir():
        raise InputError(f"output {path} is a folder; give the name of a file")
    probe = path.parent / _temporary()
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output {path} cannot be written ({error.strerror} in {path.parent}); make the folder or choose another"
        ) from error


def write_file(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as one JSON file, whole or not at all; an older file of that name is replaced.

    Raises:
        InputError: it is a folder, or the disk refuses.
    """
    check_file(path)
    temporary = path.parent / _temporary()
    try:
        write_json(temporary, value)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"output {path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: Mapping[str, Any]) -> str:
    """JSON text of an object; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """Nested data with null where JSON has no number: NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _temporary() -> str:
    return f"{_PREFIX}{uuid.uuid4().hex}"


def sync(path: Path) -> None:
    """Asks the disk to hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LENGTH = struct.Struct("<Q")  # a safetensors file starts with the size of its JSON header in bytes


_MAX_HEADER = 100_000_000


def read_folder(folder: Path) -> dict[str, Any]:
    """Report, plan (None if there is none), and per safetensors file the dtype and shape of each tensor.

    Raises:
        InputError: not an output folder, or a file in it is damaged.
    """
    if not (folder / "report.json").is_file():
        raise InputError(f"{folder} is a folder without report.json; expected one written by --out, or a model")
    return {
        "folder": str(folder),
        "report": _read_json(folder / "report.json"),
        "plan": _read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None,
        "tensors": {path.name: _header(path) for path in sorted(folder.glob("*.safetensors"))},
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except InputError as error:
        raise InputError(f"{error}; write the folder again") from error


def _header(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
            if len(text) < length:
                raise ValueError("it ends in its header")
            header = json.loads(text)
        return {
            name: {"dtype": item["dtype"], "shape": item["shape"]}
            for name, item in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); write the folder again") from error
