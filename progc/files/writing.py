"""Writes files and folders atomically: under a temporary name in the same folder, then fsync, then rename.

A reader, a crash or a kill therefore sees the old contents or the new ones, never a part. Imports no torch and no user
code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from progc.errors import InputError


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to write into; it becomes `folder` when the block ends without an exception.

    Raises:
        InputError: see `check_output`; or the disk refuses.
    """
    check_output(folder)
    final = folder.resolve()
    temporary = temporary_name(final)
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


def check_output(folder: Path) -> None:
    """Checks, before any work, that `folder` can be written; leaves nothing behind.

    Raises:
        InputError: `folder` exists and is not an empty folder, or its parent takes no files.
    """
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir():
            raise InputError(f"output {folder} is not a folder; give a new name or an empty folder")
        if any(folder.iterdir()):
            raise InputError(f"output folder {folder} is not empty; give a new name or empty it")
    above = folder.resolve().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    probe = temporary_name(above / folder.name)
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written ({error.strerror} in {above}); choose another place"
        ) from error


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write a file to; it becomes `path` when the block ends without an exception.

    A file that is at `path` already is replaced.

    Args:
        path: the file.
        durable: whether to wait until the disk holds the file; False where the file can be made again.

    Raises:
        OSError: the disk refuses.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(path: Path, advice: str = "free space or choose another place") -> Iterator[Path]:
    """Does what `replacing` does, for a file that the user waits for: a disk that refuses is the user's to fix.

    Args:
        path: the file.
        advice: what the message of an error ends with.

    Raises:
        InputError: the disk refuses.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; {advice}") from error


def check_file(path: Path) -> None:
    """Checks, before any work, that the file `path` can be written; leaves nothing behind.

    Raises:
        InputError: `path` is a folder, or its folder does not exist or takes no files.
    """
    if path.is_dir():
        raise InputError(f"output {path} is a folder; give the name of a file")
    probe = temporary_name(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output {path} cannot be written ({error.strerror} in {path.parent}); create the folder or choose another"
        ) from error


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as a JSON file, atomically; a file that is at `path` already is replaced.

    Raises:
        InputError: `path` is a folder, or the disk refuses.
    """
    check_file(path)
    with output_file(path) as temporary:
        write_json(temporary, value)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON, indented, with a final newline. Not atomic: for files of an `output_folder`."""
    path.write_text(json_text(value) + "\n", encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """Returns the JSON text of an object; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """Returns nested data with None in place of NaN and infinities, and lists in place of tuples."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def temporary_name(path: Path) -> Path:
    """Returns a new hidden name in the folder of `path`, to write to before renaming to `path`."""
    return path.parent / f".progc-{uuid.uuid4().hex}"


def sync(path: Path) -> None:
    """Waits until the disk holds what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
